"""The Python interface: its names, and what its methods do and refuse."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pgqueue_embed
from pgqueue_embed import Database, PgembedError, Pipeline, Worker, search, search_async
from pgqueue_embed.adopt import run
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from tests.acceptance.test_docs import commands
from tests.support.corpus import make_source, texts
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline

NAMES = {
    *("Database", "Hit", "PgembedError", "Pipeline", "Progress", "Worker", "search"),
    *("search_async", "__version__"),
}


# Names


def test_public_names_are_these_and_no_more() -> None:
    assert set(pgqueue_embed.__all__) == NAMES
    assert len(NAMES) <= 9
    for name in NAMES:
        assert getattr(pgqueue_embed, name) is not None
    assert set(dir(pgqueue_embed)) >= NAMES


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Coordinator'"):
        pgqueue_embed.Coordinator  # noqa: B018


WITHOUT_A_MODEL = """
import os, sys
from pgqueue_embed import Pipeline, Worker, search
from tests.support.commands import pgembed

commands = (
    "--help", "status", "failures reports", "enqueue reports", "pause reports", "resume reports",
    "index reports", "sync reports", "show", "retry reports",
)
for command in commands:
    ran = pgembed(os.environ["PGEMBED_DSN"], *command.split())
    assert ran.exit_code == 0, (command, ran)
print([each for each in ("torch", "transformers", "sentence_transformers") if each in sys.modules])
"""


def test_package_and_commands_load_no_torch_where_no_model_is_needed(
    conninfo: str, connection: Connection
) -> None:
    make_pipeline(connection, make_source(connection, texts(3)))
    printed = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_MODEL],
        env={**os.environ, "PGEMBED_DSN": conninfo},
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.stdout.strip() == "[]", printed.stderr


def test_types_are_shipped() -> None:
    assert (Path(pgqueue_embed.__file__).parent / "py.typed").exists()


def documented() -> list[tuple[str, object]]:
    """Return every public function, class and method of the interface."""
    found: list[tuple[str, object]] = [("search", search), ("search_async", search_async)]
    for made in (Database, Pipeline, Worker, pgqueue_embed.Progress):
        found.append((made.__name__, made))
        found += [
            (f"{made.__name__}.{name}", method)
            for name, method in vars(made).items()
            if inspect.isfunction(method) and not name.startswith("_") and name != "find"
        ]
    return found


@pytest.mark.parametrize(("name", "documented"), documented(), ids=[n for n, _ in documented()])
def test_everything_public_explains_itself_with_an_example(name: str, documented: object) -> None:
    text = inspect.getdoc(documented) or ""
    assert "Example::\n\n    " in text, f"{name} has no example"


# What the arguments of the methods are called, where the option of the command has another name.
REnamed = {"rename": "name", "target_column": "target_columns"}


# Of the command line alone: where the database is, how it logs, and which schema is meant; and what
# is only said to a person. What goes by itself has a method of its own.
NO_ARGUMENT = {"db_schema", "dry_run", "switch", "wait", "force", "abort", "follow_source", "help"}


@pytest.mark.parametrize(
    ("command", "method"), [("create", Database.create), ("alter", Pipeline.alter)]
)
def test_methods_take_all_that_their_commands_take(
    command: str, method: Callable[..., object]
) -> None:
    everywhere = {
        parameter.name for parameter in commands()[("status",)].params if parameter.name != "name"
    }
    options = {
        # Of one that can only be turned off, there is no other spelling.
        (option.opts or option.secondary_opts)[0]
        .removeprefix("--no-" if not option.opts else "--")
        .replace("-", "_")
        for option in commands()[(command,)].params
        if option.param_type_name == "option" and option.name not in everywhere
    }
    wanted = {REnamed.get(option, option) for option in options - NO_ARGUMENT}
    assert wanted - set(inspect.signature(method).parameters) == set()


# Pipelines and search, with a real model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model that is small enough to load at once."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def make_reports(database: Database, model: Path) -> Pipeline:
    return database.create(
        "reports",
        source_table="reports",
        target_table="chunks",
        text_field="body",
        target_columns={"embedding": "vector"},
        model=str(model),
        if_not_exists=True,
    )


def test_a_pipeline_is_made_embedded_searched_and_dropped(empty_conninfo: str, model: Path) -> None:
    database = Database(empty_conninfo)
    with pytest.raises(PgembedError, match="pgembed migrate"):
        database.pipeline("reports")
    assert database.migrate()
    assert database.migrate() == []
    with connect(empty_conninfo) as connection:
        make_source(connection, [*texts(20), None])
        with pytest.warns(UserWarning, match="does not know"):
            reports = make_reports(database, model)
        assert make_reports(database, model).name == reports.name
        assert [each.name for each in database.pipelines()] == ["reports"]
        assert str(reports.settings().target) == "public.chunks"

        assert reports.enqueue(limit=5) == 5
        assert reports.enqueue() == 16
        assert reports.progress().pending == 21
        assert Worker(database, drain=True, device="cpu").run() == "drained"
        progress = reports.progress()
        assert (progress.done, progress.dead, progress.percent) == (21, 0, 100.0)
        assert_converged(connection, "reports")

        hit, *_ = search(reports, texts(7)[-1], limit=3)
        assert (hit.key, hit.chunk) == (7, texts(7)[-1])
        assert hit.score == pytest.approx(1, abs=1e-3)
        assert search(reports, texts(7)[-1], threshold=0.999)[0] == hit
        assert reports.encode("alarm").shape == (16,)

        reports.pause("for a test")
        assert (reports.progress().state, reports.progress().state_reason) == (
            "paused",
            "for a test",
        )
        reports.resume()
        assert reports.progress().state == "active"
        assert reports.retry() == 0
        reports.drop(delete_vectors=True)
        assert database.pipelines() == []
    with pytest.raises(UsageError, match="there is no pipeline 'reports'"):
        reports.progress()


@pytest.mark.filterwarnings("ignore:.*does not know")
def test_a_table_of_vectors_is_adopted_and_an_interrupted_adoption_goes_on(
    conninfo: str, connection: Connection, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(connection, texts(8))
    database = Database(conninfo)
    made = make_reports(database, model)
    made.enqueue()
    assert Worker(database, drain=True, device="cpu").run() == "drained"
    made.drop()

    def adopted() -> Pipeline:
        return database.adopt(
            "reports",
            source_table="reports",
            target_table="chunks",
            text_field="body",
            target_columns={"embedding": "vector"},
            model=str(model),
        )

    with monkeypatch.context() as patch:
        patch.setattr(run, "adopt_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adopted()
    monkeypatch.setattr(run, "compare_sample", None)  # What was compared is not compared again.
    assert adopted().progress().done == 8
    assert_converged(connection, "reports")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_wrong_arguments_are_refused_in_one_line(conninfo: str, connection: Connection) -> None:
    database = Database(conninfo)
    reports = make_pipeline(connection, make_source(connection, texts(1)))
    pipeline = database.pipeline(reports.name)
    for wrong in (
        lambda: search(pipeline, "alarm", limit=0),
        lambda: pipeline.enqueue(limit=0),
        lambda: pipeline.enqueue(where="no such column"),
        lambda: pipeline.retry(["17"]),
        lambda: Worker(database, concurrency=0),
        lambda: database.create("other", source_table="absent"),
        lambda: database.pipeline("absent"),
    ):
        with pytest.raises(UsageError) as refused:
            wrong()
        assert "\n" not in str(refused.value)


def test_no_object_shows_a_password() -> None:
    dsn = "postgresql+psycopg://me:s3cr3t@db.lan/x"
    assert repr(Database(dsn)) == "Database(me@db.lan:5432/x)"
    assert repr(Pipeline(dsn, "reports")) == "Pipeline('reports')"
