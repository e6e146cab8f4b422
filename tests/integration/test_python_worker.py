"""A worker in somebody's own process, with a model that costs nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed import Database, PgembedError, Pipeline, Worker, search, search_async
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import DatabaseUnavailable, SetupError, UsageError
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import heartbeat, models, worker
from pgqueue_embed.worker.models import by_waiting
from pgqueue_embed.worker.settings import WorkerSettings
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.light_worker import LightChoice, LightModel
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, queue_documents
from tests.support.rows import one_value
from tests.support.working import drain, open_session


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
        (lambda each: ANYTHING(each, "pump", connection=1), r"give a psycopg\.Connection"),
        (
            lambda each: asyncio.run(search_async(each, "pump", connection=cast(Any, 1))),
            r"give a psycopg\.AsyncConnection",
        ),
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
