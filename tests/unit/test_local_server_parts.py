"""The parts of the private server that need no server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server import LocalServer, config, default_server, distribution
from pgqueue_embed.local_server.account import Account
from pgqueue_embed.local_server.cluster import create_cluster
from pgqueue_embed.local_server.config import config_text, configured_port
from pgqueue_embed.local_server.folders import write_private_file
from pgqueue_embed.local_server.layout import MAX_LOG_BYTES, ServerLayout
from pgqueue_embed.local_server.lock import exclusive_lock
from pgqueue_embed.local_server.ports import HOST, is_free, pick_port
from pgqueue_embed.local_server.postmaster import live_pid, recorded_pid, remove_stale_pid_file
from pgqueue_embed.local_server.programs import Programs
from pgqueue_embed.local_server.serverlog import is_passing, last_fault, port_was_taken

TAKEN = """\
2026-01-02 03:04:05 UTC [9] LOG:  could not bind IPv4 address "127.0.0.1": Address already in use
2026-01-02 03:04:05 UTC [9] FATAL:  could not create any TCP/IP sockets
2026-01-02 03:04:05 UTC [9] FATAL:  the database system is starting up
2026-01-02 03:04:05 UTC [9] LOG:  database system is shut down
"""
ORPHANS = "1 UTC [9] FATAL:  pre-existing shared memory block (key 1, ID 2) is still in use\n"
FULL = 'could not write to file "pg_wal/xlogtemp.9": No space left on device'
FAREWELL = "1 UTC [8] FATAL:  terminating connection due to unexpected postmaster exit\n"


def test_last_fault_is_the_reason_and_not_the_noise_after_it() -> None:
    assert last_fault(TAKEN) == "could not create any TCP/IP sockets"
    assert last_fault("LOG:  all is well\n") is None


def test_a_taken_port_and_orphans_are_told_from_lasting_faults() -> None:
    assert port_was_taken(TAKEN)
    assert not is_passing(TAKEN)
    assert is_passing(ORPHANS + FAREWELL)
    assert "shared memory" in str(last_fault(ORPHANS + FAREWELL))
    assert not is_passing("FATAL:  could not open file\n")


def test_initdb_that_fails_says_why_and_not_what_it_cleared_away(tmp_path: Path) -> None:
    program = tmp_path / "initdb"
    said = f"FATAL:  {FULL}\nchild process exited with exit code 1\ninitdb: removing data directory"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n1 UTC [9] {said}\nEND\nexit 1\n")
    program.chmod(0o755)
    programs = Programs(folder=tmp_path, account=None)
    with pytest.raises(LocalServerError, match=f"initdb says '{FULL}'; mend that"):
        create_cluster(ServerLayout(tmp_path / "data"), programs, 18, {})


def test_configured_port_is_read_back() -> None:
    text = config_text(23456, {"port": "1", "cluster_name": "it's \\"})
    assert configured_port(text) == 23456
    assert r"cluster_name = 'it''s \\'" in text


def test_extra_settings_win_and_durability_is_never_switched_off_by_us() -> None:
    assert "max_connections = '7'" in config_text(1, {"max_connections": "7"})
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert name not in config_text(1, {})


def test_a_small_shared_memory_folder_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(config, "ENOUGH_SHARED_MEMORY_BYTES", 1)
    assert config.machine_settings(tmp_path) == {}
    monkeypatch.setattr(config, "ENOUGH_SHARED_MEMORY_BYTES", 2**62)
    assert config.machine_settings(tmp_path) == {"dynamic_shared_memory_type": "sysv"}
    assert config.machine_settings(tmp_path / "absent") == {}


def test_a_picked_port_is_free_until_somebody_listens() -> None:
    port = pick_port()
    with socket.create_server((HOST, port)):
        assert not is_free(port)
    assert is_free(port)


@pytest.mark.parametrize(
    ("text", "pid"), [("", None), ("nonsense\n", None), ("42\n/data\n", 42), ("-42\n", 42)]
)
def test_pid_file_may_be_empty_or_broken(tmp_path: Path, text: str, pid: int | None) -> None:
    file = tmp_path / "postmaster.pid"
    assert recorded_pid(file) is None
    file.write_text(text)
    assert recorded_pid(file) == pid


def test_pid_of_another_process_is_not_the_server_and_its_file_goes(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    layout.pid_file.write_text(f"{os.getpid()}\n{tmp_path}\n")
    assert live_pid(layout) is None
    remove_stale_pid_file(layout)
    assert not layout.pid_file.exists()


def test_pid_file_of_a_dead_process_is_left_to_postgresql(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    layout = ServerLayout(tmp_path)
    layout.pid_file.write_text(f"{process.pid}\n{tmp_path}\n")
    remove_stale_pid_file(layout)
    assert layout.pid_file.exists()


def test_one_log_before_the_present_one_is_kept(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    layout.rotate_log()
    layout.log_file.write_bytes(b"x" * MAX_LOG_BYTES)
    layout.rotate_log()
    assert layout.log_size() == MAX_LOG_BYTES
    with layout.log_file.open("ab") as log:
        log.write(b"y")
    layout.rotate_log()
    assert layout.log_size() == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{layout.log_file.name}.1"]


def test_private_file_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(victim)
    write_private_file(link, "secret", None)
    assert victim.read_text() == "kept"
    assert link.read_text() == "secret"
    assert link.stat().st_mode & 0o777 == 0o600


def test_a_lock_held_too_long_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "server.lock"
    with (
        exclusive_lock(path, wait_seconds=1),
        pytest.raises(LocalServerError, match=r"server\.lock"),
        exclusive_lock(path, wait_seconds=0.1),
    ):
        pass


def test_a_closed_folder_above_stops_another_user(tmp_path: Path) -> None:
    stranger = Account("stranger", uid=54321, gid=54321)
    tmp_path.chmod(0o700)
    assert not stranger.can_reach(tmp_path / "data")
    assert Account("me", os.getuid(), os.getgid()).can_reach(tmp_path / "data") or os.getuid() != 0


def test_missing_wheel_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distribution, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(LocalServerError) as caught:
        distribution.program_folder(18, None, tmp_path)
    assert str(caught.value) == (
        "no database was named and the private server is not installed; give --dsn or set "
        "PGEMBED_DSN, or install it: pip install 'pgqueue-embed[local]'"
    )


def test_unknown_major_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError, match="choose one of 16, 18"):
        distribution.program_folder(17, None, tmp_path)


def test_home_is_the_named_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGEMBED_HOME", str(tmp_path))
    assert default_server().data_folder == (tmp_path / "postgresql").resolve()


@pytest.mark.skipif(os.geteuid() != 0, reason="about root's own home")
def test_root_gets_a_home_that_nobody_can_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PGEMBED_HOME", raising=False)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_server().data_folder == Path("/var/lib/pgembed/postgresql")


def test_a_server_that_was_never_started_is_reported_and_not_made(tmp_path: Path) -> None:
    server = LocalServer(tmp_path / "absent" / "data")
    assert server.stop() is False
    server.destroy()
    found = server.status()
    assert (found.running, found.version, found.port, found.size_bytes) == (False, None, None, 0)
    with pytest.raises(LocalServerError, match="pgembed db start"):
        server.conninfo()
    assert not (tmp_path / "absent").exists()


def test_importing_the_package_loads_no_database_driver() -> None:
    code = (
        "import sys, pgqueue_embed.local_server as e; e.default_server(); "
        "sys.exit(bool({'psycopg', 'psutil', 'torch', 'typer'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PGEMBED_HOME": "/nonexistent"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
