"""The Python interface: its names, and a worker in somebody's own process."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

import pgqueue_embed
from pgqueue_embed import Database, PgembedError, Pipeline, Worker, search, search_async
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import DatabaseUnavailable, SetupError, UsageError
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import heartbeat, models, worker
from pgqueue_embed.worker.models import by_waiting
from pgqueue_embed.worker.settings import WorkerSettings
from tests.acceptance.test_docs import commands
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.light_worker import LightChoice, LightModel
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, queue_documents
from tests.support.rows import one_value
from tests.support.working import drain, open_session

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
import sys
from typer.testing import CliRunner
from pgqueue_embed import Pipeline, Worker, search
from pgqueue_embed.cli.app import app

commands = (
    "--help", "status", "failures reports", "enqueue reports", "pause reports", "resume reports",
    "index reports", "sync reports", "show", "retry reports",
)
for command in commands:
    result = CliRunner().invoke(app, command.split(), catch_exceptions=False)
    assert result.exit_code == 0, (command, result.output)
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


# A worker in this process, with a model that costs nothing


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the light model into this process, one for every fingerprint."""

    def choose(connection: Connection, settings: WorkerSettings) -> LightChoice:
        pipelines = load_pipelines(connection, settings.pipelines)
        first, *_ = by_waiting(connection, pipelines, settings)
        return LightChoice(first.model_key)

    monkeypatch.setattr(worker, "choose_model", choose)
    monkeypatch.setattr(models, "check_local_model", lambda _pipeline, _path: None)
    monkeypatch.setattr(heartbeat, "device_memory_bytes", lambda _device: 0)


def queue_reports(connection: Connection, count: int, name: str = "reports") -> None:
    source = make_source(connection, texts(count), table=name)
    enqueue(connection, make_pipeline(connection, source, name=name), Selection())


@pytest.mark.usefixtures("light")
def test_worker_drains_beside_the_program(conninfo: str, connection: Connection) -> None:
    queue_reports(connection, 50)
    with Worker(Database(conninfo), drain=True) as running:
        assert running.wait(30) == "drained"
    assert running.wait() == "drained"
    assert_converged(connection, "reports")


@pytest.mark.usefixtures("light")
def test_worker_without_drain_works_until_its_block_is_left(
    conninfo: str, connection: Connection
) -> None:
    queue_reports(connection, 10)
    database = Database(conninfo)
    with Worker(database, pipelines=["reports"]) as running:
        wait_until(lambda: database.pipeline("reports").progress().done == 10, "all is embedded")
        assert running.wait(0) is None
    assert running.wait() == "stopped"
    reason = one_value(connection, "select stop_reason from pgembed.workers")
    assert reason == "stopped"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The light model begins with setting the first event, and goes on when the second is set."""
    entered, hold = threading.Event(), threading.Event()
    launch = LightModel.launch

    def wait_first(*arguments: Any, **named: Any) -> object:
        entered.set()
        assert hold.wait(30)
        return launch(*arguments, **named)

    monkeypatch.setattr(LightModel, "launch", wait_first)
    return entered, hold


@pytest.mark.usefixtures("light")
def test_stop_from_another_thread_finishes_the_claim_in_hand(
    conninfo: str, connection: Connection, held: tuple[threading.Event, threading.Event]
) -> None:
    entered, hold = held
    queue_reports(connection, 40)  # items of 8 keys
    running = Worker(Database(conninfo), concurrency=1).start()
    assert entered.wait(30)
    threading.Thread(target=running.stop).start()
    assert running.wait(0.05) is None
    hold.set()
    assert running.wait(30) == "stopped"
    progress = Database(conninfo).pipeline("reports").progress()
    assert (progress.done, progress.in_flight) == (8, 0)


@pytest.mark.usefixtures("light")
def test_stop_now_gives_the_claim_back(
    conninfo: str, connection: Connection, held: tuple[threading.Event, threading.Event]
) -> None:
    entered, hold = held
    queue_reports(connection, 10)
    running = Worker(Database(conninfo), concurrency=1).start()
    assert entered.wait(30)
    running.stop(now=True)
    hold.set()
    assert running.wait(30) == "stopped"
    progress = Database(conninfo).pipeline("reports").progress()
    assert (progress.done, progress.pending, progress.in_flight) == (0, 10, 0)
    assert connection.execute("select from pgembed.attempts").fetchall() == []


@pytest.mark.usefixtures("light")
def test_one_process_works_for_pipelines_of_two_models(
    conninfo: str, connection: Connection
) -> None:
    queue_reports(connection, 10)
    queue_reports(connection, 10, "letters")
    connection.execute(
        "update pgembed.pipelines set model_fingerprint = repeat('e', 64) where name = 'letters'"
    )
    assert Worker(Database(conninfo), drain=True).run() == "drained"
    for name in ("reports", "letters"):
        assert_converged(connection, name)


@pytest.mark.usefixtures("light")
def test_models_are_loaded_once_for_what_this_role_may_not_read(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("reports", "letters", "notes")):
        queue_reports(connection, 10, name)
        another = "update pgembed.pipelines set model_fingerprint = repeat(%s, 64) where name = %s"
        connection.execute(another, (str(number), name))
    connection.execute(
        "create role embedder login password 'x';"
        " grant usage on schema pgembed, public to embedder;"
        " grant all on all tables in schema pgembed to embedder;"
        " grant all on notes, notes_chunks to embedder"
    )
    choose, loads = vars(worker)["choose_model"], iter(range(3))
    # A fourth would find nothing there.
    monkeypatch.setattr(worker, "choose_model", lambda *given: (next(loads), choose(*given))[1])
    embedder = make_conninfo(conninfo, user="embedder", password="x")
    try:
        assert Worker(Database(embedder), drain=True).run() == "drained"
    finally:
        connection.execute("drop owned by embedder cascade; drop role embedder")
    pending = "select pending from pgembed.progress order by pipeline"
    assert connection.execute(pending).fetchall() == [(10,), (0,), (10,)]


@pytest.mark.usefixtures("light")
def test_database_that_is_away_between_two_models_is_waited_for(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_choice, calls = vars(worker)["choose_model"], iter(range(10))

    def choose(connection: Connection, settings: WorkerSettings) -> Any:
        if next(calls) == 1:
            raise DatabaseUnavailable("the server starts again")
        return test_choice(connection, settings)

    monkeypatch.setattr(worker, "choose_model", choose)
    test_one_process_works_for_pipelines_of_two_models(conninfo, connection)
    assert next(calls) == 3


def test_failure_at_the_start_is_raised_to_whoever_waits(empty_conninfo: str) -> None:
    with (
        pytest.raises(SetupError, match="pgembed migrate"),
        Worker(Database(empty_conninfo)) as running,
    ):
        running.wait()
    with pytest.raises(SetupError, match="pgembed migrate"):
        Worker(Database(empty_conninfo)).run()


@pytest.mark.usefixtures("light")
def test_hanging_device_is_told_and_does_not_hang_the_program(
    conninfo: str,
    connection: Connection,
    held: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, hold = held
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.1)
    queue_reports(connection, 10)
    running = Worker(Database(conninfo), concurrency=1, lease_seconds=1).start()
    with pytest.raises(SetupError, match="no progress: this process must be started again"):
        running.wait(30)
    hold.set()
    running.stop()


def test_worker_is_started_once_and_not_waited_for_before(conninfo: str) -> None:
    running = Worker(Database(conninfo))
    with pytest.raises(UsageError, match="was not started"):
        running.wait()
    running.start()
    with pytest.raises(UsageError, match="started before"):
        running.start()
    with pytest.raises(SetupError, match="no pipeline yet"):
        running.wait()


# Signals


def interrupt_when(condition: Callable[[], object]) -> None:
    """Send this process SIGINT from another thread, as Ctrl-C does, once there is a reason."""

    def send() -> None:
        wait_until(condition, "there is a reason to interrupt")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def works(conninfo: str) -> Callable[[], bool]:
    pipeline = Database(conninfo).pipeline("reports")
    return lambda: pipeline.progress().done > 0


@pytest.mark.usefixtures("light")
def test_signals_end_a_worker_that_is_told_to_handle_them(
    conninfo: str, connection: Connection
) -> None:
    queue_reports(connection, 10)
    before = signal.getsignal(signal.SIGINT)
    interrupt_when(works(conninfo))
    assert Worker(Database(conninfo)).run(handle_signals=True) == "stopped"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT interrupts, even in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("light", "_interruptible")
def test_signals_are_the_programs_own_otherwise(conninfo: str, connection: Connection) -> None:
    queue_reports(connection, 10)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    running = Worker(Database(conninfo))
    interrupt_when(works(conninfo))
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert running.wait(0) == "stopped"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_signals_outside_the_main_thread_are_refused(conninfo: str) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            Worker(Database(conninfo)).run(handle_signals=True)
        except PgembedError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert "main thread only" in str(errors)


def test_no_keys_are_none_of_the_dead_letters(conninfo: str, connection: Connection) -> None:
    pipeline = queue_documents(connection, [POISON, POISON], max_attempts=1)
    with open_session(conninfo) as session:
        drain(session, pipeline)
    reports = Database(conninfo).pipeline("reports")
    assert (reports.retry([]), reports.progress().dead) == (0, 2)
    assert reports.retry(1) == 1
    assert (reports.retry(), reports.progress().dead) == (1, 0)


# What a type checker would not let pass.
ANYTHING: Callable[..., object] = search


def named(conninfo: str, name: Any) -> Pipeline:
    return Database(conninfo).pipeline(name)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda each: each.retry(["\0"]), "cannot be sent"),
        (lambda each: each.retry(["\ud800"]), "UTF-8"),
        (lambda each: each.retry("4711"), "no dead letter '4711'"),
        (lambda each: each.retry([1, 2]), "no dead letter '1'"),
        (lambda each: each.retry(1.5), "a key is text or, of id, of type int; 1.5 is not"),
        (lambda each: each.retry([b"a"]), "a key is text or, of id, of type int; b'a' is not"),
        (lambda each: named(each._conninfo, ["a"]), "the name of a pipeline is text"),
        (lambda each: named(each._conninfo, None), "the name of a pipeline is text"),
        (lambda each: each.enqueue(where=1), "^where 1: give a text"),
        (lambda each: ANYTHING(each, "pump", where=["id = 1"]), "give a text"),
        (lambda each: each.enqueue(where="id = '\0'"), "where|cannot be sent"),
        (lambda each: each.enqueue(where="\ud800 = 1"), "UTF-8"),
        (lambda each: each.enqueue(limit="5"), "give a whole number"),
        (lambda each: each.alter(chunk_size="64"), "^chunk_size '64': give a whole number"),
        (lambda each: each.alter(priority=True), "^priority True: give a whole number"),
        (lambda each: each.alter(view="yes"), "^view 'yes': give True or False"),
        (lambda each: each.alter(name="\0"), "printable"),
        (lambda each: each.pause("\0"), ""),
        (lambda each: ANYTHING(each, "pump", limit="5"), "give a whole number"),
        (lambda each: ANYTHING(each, "pump", threshold="high"), "give a number"),
        (lambda each: ANYTHING(each, None), "give one of them"),
    ],
)
def test_whatever_a_program_gives_is_answered_with_a_pgembed_error(
    conninfo: str, connection: Connection, call: Callable[[Any], object], said: str
) -> None:
    make_source(connection, texts(2))
    make_pipeline(connection)
    pipeline = Database(conninfo).pipeline("reports")
    if not said:
        call(pipeline)
        return
    with pytest.raises(PgembedError, match=said) as refused:
        call(pipeline)
    assert "--" not in str(refused.value)


@pytest.mark.parametrize("dsn", ["a\0b", "host=\ud800", "postgresql://\ud800@x/y", "x", 1, b"x"])
def test_string_that_names_no_database_is_a_pgembed_error(dsn: Any) -> None:
    with pytest.raises(PgembedError):
        Database(dsn)


def test_right_that_is_missing_is_a_pgembed_error(conninfo: str, connection: Connection) -> None:
    make_source(connection, texts(2))
    make_pipeline(connection)
    connection.execute("create role looker_on")
    connection.execute("grant usage on schema pgembed to looker_on")
    connection.execute("grant select on all tables in schema pgembed to looker_on")
    looking = Database(make_conninfo(conninfo, options="-c role=looker_on"))
    try:
        with pytest.raises(PgembedError, match="permission denied"):
            looking.pipeline("reports").pause()
    finally:
        connection.execute("drop owned by looker_on")
        connection.execute("drop role looker_on")
