"""The command line, called in this process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
from typer import testing
from typer.main import get_command
from typer.testing import CliRunner

from pgqueue_embed.cli.app import app
from pgqueue_embed.errors import PgembedError

# For each call typer makes all commands anew, which takes longer than most of them do.
setattr(testing, "_get_command", cache(get_command))  # noqa: B010 (no name of typer's interface)


@dataclass(frozen=True)
class Ran:
    """What a command printed; `error` is the one line that it failed with."""

    stdout: str
    stderr: str
    error: str | None
    exit_code: int


def pgembed(conninfo: str, *arguments: str, answer: str | None = None) -> Ran:
    """Run ``pgembed *arguments`` on the database of `conninfo`; other exceptions are raised.

    `answer` is what a person types.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        patch.setenv("PGEMBED_DSN", conninfo)
        result = CliRunner().invoke(app, list(arguments), input=answer)
    error = result.exception
    if error is not None and not isinstance(error, (PgembedError, SystemExit)):
        raise error
    failed = isinstance(error, PgembedError)
    return Ran(
        stdout=result.stdout,
        stderr=result.stderr,
        error=str(error) if failed else None,
        exit_code=error.exit_code if isinstance(error, PgembedError) else result.exit_code,
    )
