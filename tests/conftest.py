"""Servers and databases: one migrated template a server, one clone of it a test."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from xdist.scheduler import LoadFileScheduling

# Tests run side by side, a core each. Where torch and numpy had all cores, their threads would wait
# for one another by spinning. Who is imported below reads it; programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control lets what it starts in the background ignore Ctrl-C, and with it all
# programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.garbage import collect_seldom
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.log import lines
from tests.servers import temporary_server
from tests.support.pipelines import prepare_with_fake_model
from tests.support.prepared import Fill
from tests.support.programs import left_out

DEFAULT_VERSION = 18
OLDER_VERSION = 16

# One clone is a few hundred small files: copied as files, they need no entry in the log.
CLONE = "create database {} template {} strategy file_copy"

# These take longest. They begin first, lest one of them be left to run alone at the end.
LONGEST_FILES = (
    *("test_demo.py", "test_quickstart.py", "test_out_of_time.py", "test_any_order.py"),
    *("test_light_models.py", "test_worker_processes.py", "test_fault_points.py", "test_soak.py"),
    *("test_fault_kinds.py", "test_models.py", "test_server_faults.py", "test_variants.py"),
    *("test_environment_faults.py", "test_embedding_model.py", "test_upgrades.py"),
    *("test_unserved.py", "test_poison.py", "test_local_server.py", "test_network_faults.py"),
    *("test_bad_input.py", "test_source_column.py", "test_claim_failures.py", "test_claims.py"),
    *("test_adopt.py", "test_alter_switch.py", "test_every_target.py", "test_streams.py"),
    *("test_wheel.py", "test_working_folder.py", "test_living_table.py"),
)

# These import torch and the library; a process that has imported both needs no second for a model.
FILES_WITH_MODELS = frozenset(
    {
        *("test_light_models.py", "test_models.py", "test_variants.py", "test_embedding_model.py"),
        *("test_model_files.py", "test_model_kinds.py", "test_model_use.py", "test_precision.py"),
        *("test_model_reading.py", "test_learning_to_read.py", "test_light_encoder.py"),
        *("test_adopt_decoded.py", "test_embedding_devices.py", "test_verify.py", "test_demo.py"),
        *("test_round_trips.py", "test_reuse.py", "test_doctor.py", "test_truncation.py"),
        *("test_search.py", "test_search_order.py", "test_pipelines.py", "test_warm_query.py"),
        "test_passes_at_once.py",
    }
)
# The names that the variants of `on_both_servers` have.
ON_OLDER_SERVER = re.compile(rf"[\[-]pg{OLDER_VERSION}[]-]")

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 << 30

Administrator = psycopg.Connection[tuple[object, ...]]

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "on_both_servers(every_case=False): run on PostgreSQL 16 too, not on 18 alone: the first of"
        " a test's cases, or each where their statements are not the same",
    )


class Scopes(LoadFileScheduling):  # type: ignore[misc]
    """Shares tests among processes by files, but what takes long to begin is of one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if ON_OLDER_SERVER.search(nodeid):
            return "on the older server"
        return "with models" if Path(file).name in FILES_WITH_MODELS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scopes | None:
    return Scopes(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turns = {name: turn for turn, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: turns.get(item.path.name, len(turns)))
    repeated = list(_further_cases_on_the_older_server(items))
    config.hook.pytest_deselected(items=repeated)
    left_out = set(repeated)
    items[:] = [item for item in items if item not in left_out]


def _further_cases_on_the_older_server(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    seen: set[str] = set()
    for item in items:
        marked = item.get_closest_marker("on_both_servers")
        if marked is None or marked.kwargs.get("every_case") or not _is_on_older_server(item):
            continue
        test = item.nodeid.partition("[")[0]
        if test in seen:
            yield item
        seen.add(test)


def _is_on_older_server(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.callspec.params["server"] == OLDER_VERSION


def pytest_collection_finish() -> None:
    """Keep what is there for good, libraries and tests, from being looked through for garbage."""
    gc.collect()
    gc.freeze()
    collect_seldom()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    line = left_out(reason for _file, _line, reason in (report.longrepr for report in skipped))
    if line is not None:
        terminalreporter.write_line(line, yellow=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("on_both_servers"):
        versions = [DEFAULT_VERSION, OLDER_VERSION]
        ids = [f"pg{version}" for version in versions]
        metafunc.parametrize("server", versions, indirect=True, ids=ids)


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test runs in this process may configure its log, and no other test's."""
    monkeypatch.setattr(lines, "_how", dict(lines._how))
    monkeypatch.setattr(logging.getLogger("psycopg"), "handlers", [])


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[int], LocalServer]]:
    """A function from major version to a running server of this test run, started when asked."""
    with ExitStack() as stack:

        @cache
        def running(major_version: int) -> LocalServer:
            with _temporary_files_in_memory():
                return stack.enter_context(temporary_server(major_version))

        yield running


@pytest.fixture(scope="session")
def administrators(
    servers: Callable[[int], LocalServer],
) -> Iterator[Callable[[LocalServer], Administrator]]:
    """A function from one of the `servers` to a session in it that makes and drops databases."""
    del servers  # to be there for longer than the sessions
    with ExitStack() as stack:

        @cache
        def connected(server: LocalServer) -> Administrator:
            session = psycopg.connect(server.conninfo(), autocommit=True)
            return stack.enter_context(session)

        yield connected


@pytest.fixture(scope="session")
def templates(
    administrators: Callable[[LocalServer], Administrator],
) -> Callable[[LocalServer], str]:
    """A function from server to the name of its migrated, otherwise empty database."""

    @cache
    def migrated(server: LocalServer) -> str:
        name = "migrated_template"
        _execute(administrators(server), "create database {}", name)
        migrate(database_conninfo(server, name))
        return name

    return migrated


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, servers: Callable[[int], LocalServer]) -> LocalServer:
    """A running server: PostgreSQL 18, and 16 too for tests marked ``on_both_servers``."""
    return servers(getattr(request, "param", DEFAULT_VERSION))


@pytest.fixture(scope="session")
def administrator(
    server: LocalServer, administrators: Callable[[LocalServer], Administrator]
) -> Administrator:
    """The session in which databases of the server are made and dropped."""
    return administrators(server)


@pytest.fixture(scope="session")
def template(server: LocalServer, templates: Callable[[LocalServer], str]) -> str:
    """The name of a migrated database to clone; nobody may be connected to it."""
    return templates(server)


@pytest.fixture
def conninfo(
    request: pytest.FixtureRequest,
    server: LocalServer,
    administrator: Administrator,
    template: str,
    prepared: Callable[[Fill], str],
) -> Iterator[str]:
    """A migrated database of the test's own; the role is a superuser.

    Of the first fixture of the file's PREPARED that the test asks for, it holds already what that
    function has made in a migrated database: once, and each test has a copy. A fixture that has
    cases has a function for each.
    """
    ways: dict[str, Fill | Mapping[str, Fill]] = getattr(request.module, "PREPARED", {})
    original = template
    for fixture in [name for name in ways if name in request.fixturenames][:1]:
        fill = ways[fixture]
        if isinstance(fill, Mapping):
            fill = fill[request.node.callspec.params[fixture]]
        original = prepared(fill)
    with _temporary_database(administrator, CLONE, original) as name:
        yield database_conninfo(server, name)


@pytest.fixture(scope="module")
def prepared(
    server: LocalServer, administrator: Administrator, template: str
) -> Iterator[Callable[[Fill], str]]:
    """A function from a way to fill a database to the name of one that was, for tests to clone."""
    with ExitStack() as stack:

        @cache
        def filled(fill: Fill) -> str:
            name = stack.enter_context(_temporary_database(administrator, CLONE, template))
            fill(database_conninfo(server, name))
            _end_sessions(administrator, name)
            return name

        yield filled


@pytest.fixture(scope="module")
def shared_conninfo(
    server: LocalServer, administrator: Administrator, template: str
) -> Iterator[str]:
    """A migrated database that the tests of a file share, and leave as it is."""
    with _temporary_database(administrator, CLONE, template) as name:
        yield database_conninfo(server, name)


@pytest.fixture
def make_database(
    server: LocalServer,
    administrator: Administrator,
    template: str,
    prepared: Callable[[Fill], str],
) -> Callable[[Fill | None], Iterator[str]]:
    """A generator function of migrated databases, for tests that need several after each other."""

    def make(fill: Fill | None = None) -> Iterator[str]:
        original = template if fill is None else prepared(fill)
        with _temporary_database(administrator, CLONE, original) as name:
            yield database_conninfo(server, name)

    return make


@pytest.fixture(scope="module")
def lasting_database(
    server: LocalServer, administrator: Administrator, template: str
) -> Callable[[], AbstractContextManager[str]]:
    """A function that makes a migrated database for several tests, which leave it as it is."""

    @contextmanager
    def make() -> Iterator[str]:
        with _temporary_database(administrator, CLONE, template) as name:
            yield database_conninfo(server, name)

    return make


@pytest.fixture
def empty_conninfo(server: LocalServer, administrator: Administrator) -> Iterator[str]:
    """A database of the test's own without schema pgembed and without the vector extension."""
    with _temporary_database(administrator, CLONE, "template0") as name:
        yield database_conninfo(server, name)


@pytest.fixture
def connection(conninfo: str) -> Iterator[Connection]:
    """An autocommit session in the test's database, with the search path that a user has."""
    with connect(conninfo, application_name="test") as session:
        session.execute("reset search_path")
        yield session


@pytest.fixture
def fake_next_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`alter` takes the fake model; one of another name has other vectors."""
    alter = "pgqueue_embed.lifecycle.alter"
    monkeypatch.setattr(f"{alter}.prepare", prepare_with_fake_model)
    monkeypatch.setattr(f"{alter}.check_local_model", lambda _pipeline: None)


@pytest.fixture
def fake_models(fake_next_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`create` takes the fake model, too."""
    create = "pgqueue_embed.lifecycle.create"
    monkeypatch.setattr(f"{create}.prepare", prepare_with_fake_model)
    monkeypatch.setattr(f"{create}.describe_unknown_tokens", lambda *_: None)


@contextmanager
def _temporary_files_in_memory() -> Iterator[None]:
    """Cloning a database takes 15 ms in memory and 230 ms on a disk, and every test does it."""
    usual = tempfile.tempdir
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        tempfile.tempdir = str(MEMORY)
    try:
        yield
    finally:
        tempfile.tempdir = usual


def database_conninfo(server: LocalServer, name: str) -> str:
    """Return the connection string of another database of `server`."""
    return make_conninfo(server.conninfo(), dbname=name)


@contextmanager
def _temporary_database(session: Administrator, statement: str, *names: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _execute(session, statement, name, *names)
    yield name
    _end_sessions(session, name)
    _execute(session, "drop database {} with (force)", name)


# DROP DATABASE looks for the end of a session ten times a second, and a test's last one is ending.
SESSIONS = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
ENDING_SECONDS = 1.0


def _end_sessions(session: Administrator, database: str) -> None:
    deadline = time.monotonic() + ENDING_SECONDS
    while session.execute(SESSIONS, (database,)).rowcount and time.monotonic() < deadline:
        time.sleep(0.002)


def _execute(session: Administrator, statement: str, *names: str) -> None:
    session.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def embedder(conninfo: str, connection: Connection) -> Iterator[str]:
    """The connection string of a role with a worker's rights on schema pgembed, and no others."""
    connection.execute("drop role if exists embedder; create role embedder login password 'x'")
    connection.execute("grant usage on schema pgembed, public to embedder")
    connection.execute("grant all on all tables in schema pgembed to embedder")
    yield make_conninfo(conninfo, user="embedder", password="x")
    connection.execute("drop owned by embedder cascade; drop role embedder")
