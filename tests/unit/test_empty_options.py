"""An option with nothing in it is refused, and does not pass for one that was left out."""

from __future__ import annotations

import pytest

from tests.support.commands import pgembed

# No server is asked before the options are read.
NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("search", "reports", "stents"), "--columns"),
        (("search", "reports", "stents"), "--model-path"),
        (("search", "reports", "stents"), "--rerank"),
        (("create", "reports", "--source-table", "reports"), "--target-table"),
        (("create", "reports", "--source-table", "reports"), "--template"),
        (("create", "reports", "--source-table", "reports"), "--model"),
        (("create", "reports"), "--source-table"),
        (("alter", "reports"), "--model"),
        (("work",), "--log-level"),
        (("work",), "--pipeline"),
        (("work",), "--otlp"),
        (("status",), "--db-host"),
        (("status",), "--db-name"),
        (("bench",), "--model"),
        (("service", "install"), "--name"),
    ],
)
def test_empty_option_is_refused(command: tuple[str, ...], option: str) -> None:
    ran = pgembed(NOWHERE, *command, option, "")
    assert (ran.exit_code, ran.error) == (
        2,
        f"{option} is empty; leave it out, or give a value",
    )


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("metrics",), "--textfile"),
        (("work",), "--log-file"),
        (("evaluate", "reports"), "--queries"),
        (("web",), "--api-key-file"),
    ],
)
def test_empty_name_of_a_file_is_refused(command: tuple[str, ...], option: str) -> None:
    ran = pgembed(NOWHERE, *command, option, "")
    assert (ran.exit_code, ran.error) == (2, f"{option} names no file; give one, or leave it out")


@pytest.mark.parametrize(
    "arguments",
    [
        ("alter", "reports", "--query-prompt", ""),
        ("alter", "reports", "--partition-by", ""),
        ("retry", "reports", "--key", ""),
    ],
)
def test_what_an_empty_value_means_something_to_goes_on(arguments: tuple[str, ...]) -> None:
    ran = pgembed(NOWHERE, *arguments)
    assert ran.error is not None
    assert ran.error.startswith("cannot connect")
