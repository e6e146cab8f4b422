"""One place for a setting: who names one of a pipeline, worker or search takes it from there."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed import Database, Pipeline, Worker, search, search_async
from pgqueue_embed.api.arguments import argument
from pgqueue_embed.cli.alter import WantedChanges
from pgqueue_embed.cli.pipeline_options import WantedPipeline
from pgqueue_embed.cli.search_options import WantedSearch
from pgqueue_embed.cli.worker_options import WorkerOptions
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.pipeline.option import Option, options_of, shown
from pgqueue_embed.pipeline.options import ALTERABLE, PIPELINE_OPTIONS, Beside
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.search_server.bodies import SEARCH_FIELDS
from pgqueue_embed.vector_search.options import SEARCH_OPTIONS
from pgqueue_embed.worker.settings import WorkerSettings

README = Path(__file__).parents[2] / "README.md"
SEARCHES = README.parent / "docs" / "search.md"
OF_WORKERS = options_of(WorkerSettings)
ALL = [*PIPELINE_OPTIONS.values(), *OF_WORKERS]


def named(options: Iterable[Option]) -> list[str]:
    return [option.name for option in options]


def arguments(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments of a method by name, with their default."""
    return {each.name: each.default for each in inspect.signature(method).parameters.values()}


def test_every_setting_of_a_pipeline_is_an_option_and_has_its_default_from_there() -> None:
    held = {option.field: option for option in options_of(PipelineSpec)}
    assert held.keys() == {each.name for each in fields(PipelineSpec)} - {"name"}
    for each in fields(PipelineSpec):
        if each.default is not MISSING and each.name in held and held[each.name].type is not list:
            assert held[each.name].default == each.default


def test_every_option_stands_once_in_the_order_of_the_help() -> None:
    assert len(set(named(ALL))) == len(ALL)
    assert PIPELINE_OPTIONS.keys() == {*named(options_of(PipelineSpec)), *named(options_of(Beside))}


def test_commands_take_all_options() -> None:
    assert named(WantedPipeline.options) == list(PIPELINE_OPTIONS)
    assert named(WorkerOptions.options) == named(OF_WORKERS)
    assert {*named(WantedChanges.options)} == {"rename", *ALTERABLE}
    assert named(WantedSearch.options) == list(SEARCH_OPTIONS)


def test_create_of_python_takes_all_options_with_their_defaults() -> None:
    """Its signature is written, for editors and people, and held to the table here."""
    taken = arguments(Database.create)
    expected = {argument(option): option for option in PIPELINE_OPTIONS.values()}
    assert taken.keys() - expected.keys() == {"self", "name", "if_not_exists"}
    assert expected.keys() <= taken.keys()
    assert taken["source_table"] is inspect.Parameter.empty
    for name in expected.keys() - {"source_table", "id_field", "copy_columns"}:
        assert taken[name] == expected[name].default, name
    for name in ("id_field", "copy_columns"):
        default = (taken[name],) if isinstance(taken[name], str) else taken[name]
        assert default == getattr(PipelineSpec, expected[name].field)


def test_alter_of_python_takes_all_that_can_be_altered() -> None:
    taken = arguments(Pipeline.alter)
    assert taken.keys() == {"self", "name", *(argument(each) for each in ALTERABLE.values())}
    assert {value for name, value in taken.items() if name != "self"} == {None}


def test_worker_of_python_takes_the_settings_with_their_defaults() -> None:
    taken = arguments(Worker.__init__)
    # Its process is the user's: it is not for us to replace.
    for option in OF_WORKERS:
        if option.field != "memory_limit_megabytes":
            assert taken[option.field] == option.default, option.field


@pytest.mark.parametrize("function", [search, search_async])
def test_search_of_python_takes_all_options_with_their_defaults(
    function: Callable[..., Any],
) -> None:
    taken = arguments(function)
    others = {"pipeline", "query", "vector", "record", "connection", "pool"}
    assert taken.keys() == others | SEARCH_OPTIONS.keys()
    for option in SEARCH_OPTIONS.values():
        assert taken[option.name] == (() if option.type is list else option.default), option.name


def test_the_server_takes_no_option_of_a_search_that_is_none() -> None:
    """A model that orders anew is the server's to choose: it has none."""
    fields_of_json = {*SEARCH_FIELDS} - {"pipeline", "query", "filter"}
    assert fields_of_json == SEARCH_OPTIONS.keys() - {"rerank", "device"}


@pytest.mark.parametrize("option", [each for each in ALL if each.minimum is not None], ids=str)
def test_number_out_of_range_is_refused_with_the_range(option: Option) -> None:
    option.check(option.default)
    assert option.minimum is not None
    wrong = [option.minimum - 1, math.nan]
    if option.maximum is not None:
        option.check(option.maximum)
        wrong.append(option.maximum + 1)
    for value in wrong:
        with pytest.raises(UsageError, match=f"^{option.flag} .*: give .*{option.minimum:g}"):
            option.check(value)


def test_what_is_no_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="--vector-type bit: give auto or vector or halfvec"):
        PIPELINE_OPTIONS["vector_type"].check("bit")


def test_change_of_what_cannot_be_altered_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="id_fields"):
        Changes(id_fields=("key",))


def test_the_document_on_searches_has_a_row_for_each_option_with_its_default() -> None:
    (table,) = re.findall(r"\| option \| default \|.*?\n\n", SEARCHES.read_text("utf-8"), re.DOTALL)
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in table.splitlines()[2:] if row]
    stated = {flag.strip("`"): default for flag, default in rows}
    assert stated.keys() - {"--json", "--model-path"} == {
        option.flag for option in SEARCH_OPTIONS.values()
    }
    for option in SEARCH_OPTIONS.values():
        if type(option.default) in (int, float, str):
            assert re.split(r"[ ,]", stated[option.flag])[0] == shown(option.default).strip("'")


def test_readme_names_the_defaults() -> None:
    defaults = {option.flag: option.default for option in ALL}
    rows = [row for row in README.read_text("utf-8").splitlines() if row.startswith("| `--")]
    checked = set()
    for names, values, *_ in ([cell.strip() for cell in row.split("|")[1:]] for row in rows):
        flags, given = re.findall(r"--[a-z-]+", names), values.split(", ")
        for flag, value in zip(flags, given, strict=False):
            if type(defaults.get(flag)) in (int, float):
                assert value == f"{defaults[flag]:g}", flag
                checked.add(flag)
    numbers = {flag for flag, default in defaults.items() if type(default) in (int, float)}
    assert checked == numbers
