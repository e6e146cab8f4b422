"""`pgembed service`: what systemd and launchd are given, and what is there after errors.

The programs of the managers are stood in for by ones that write down how they are called: neither
may start services of the machine that tests run on.
"""

from __future__ import annotations

import getpass
import os
import plistlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqueue_embed.db.session import Connection
from pgqueue_embed.service.install import ServicePlace, install
from pgqueue_embed.service.job import Job
from pgqueue_embed.service.launchd import Launchd
from pgqueue_embed.service.systemd import Systemd
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.models import make_tiny_model

# What shells, systemd and XML each take for something else.
ODD = """a b "c" 'd' $e %f \\g <h> &i;"""
MANAGERS = {"linux": "systemctl", "darwin": "launchctl"}


class Stand:
    """A home, and a manager that writes down its calls; `refusing` names those that fail."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._calls = home / "calls"
        self.refusing = home / "refusing"
        self._calls.touch()

    def add(self, folder: Path, name: str) -> None:
        program = folder / name
        program.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {shlex.quote(str(self._calls))}\n'
            f"if [ -e {shlex.quote(str(self.refusing))} ] && "
            f'echo "$*" | grep -qf {shlex.quote(str(self.refusing))}; then\n'
            'echo "no bus" >&2; exit 5; fi\n'
        )
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        lines = self._calls.read_text().splitlines()
        self._calls.write_text("")
        return [line.split("/")[-1] for line in lines]

    @property
    def files(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.home)): file.read_bytes()
            for file in sorted(self.home.rglob("*"))
            if file.is_file() and file.parent != self.home and self.home / "bin" not in file.parents
        }


@pytest.fixture(params=MANAGERS)
def stand(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Where everything that a service is made of goes, on Linux and on macOS."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stand = Stand(tmp_path)
    stand.add(programs, MANAGERS[request.param])
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(sys, "platform", request.param)
    return stand


def the_job(stand: Stand) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of the one service, as its manager reads them."""
    for name, content in stand.files.items():
        if name.endswith(".plist"):
            job = plistlib.loads(content)
            return job["ProgramArguments"][4:], job["EnvironmentVariables"]
        if name.endswith(".service"):
            lines = [line.partition("=") for line in content.decode().splitlines()]
            words = {key: _unescaped(value) for key, _, value in lines if key == "ExecStart"}
            pairs = [_unescaped(value)[0] for key, _, value in lines if key == "Environment"]
            return words["ExecStart"], dict(pair.split("=", 1) for pair in pairs)
    raise AssertionError(f"no service among {list(stand.files)}")


def _unescaped(line: str) -> list[str]:
    """Read a line as systemd.syntax(7) says; shlex has the same rules within double quotes."""
    return [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(line)]


def test_service_runs_work_with_its_options_and_without_the_password_in_its_file(
    stand: Stand, conninfo: str
) -> None:
    said = pgembed(conninfo, "service", "install", "-c", "3", "--pipeline", "a,b").stdout

    command, environment = the_job(stand)
    assert command[:4] == [sys.executable, "-m", "pgqueue_embed", "work"]
    assert "--concurrency=3" in command
    assert "--pipeline=a,b" in command
    dsn_file = Path(environment["PGEMBED_DSN_FILE"])
    assert stat.S_IMODE(dsn_file.stat().st_mode) == 0o600
    password = conninfo_to_dict(conninfo)["password"]
    assert isinstance(password, str)
    holding = [name for name, content in stand.files.items() if password.encode() in content]
    assert holding == [str(dsn_file.relative_to(stand.home))]
    assert password not in said
    assert f"written: {dsn_file}" in said
    assert "pgembed runs; its log:" in said


@pytest.mark.parametrize("stand", ["linux"], indirect=True)
def test_worker_of_a_service_works_and_stops_as_its_manager_asks(
    stand: Stand, conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    make_source(connection, texts(3))
    names = ("reports", "--source-table", "reports", "--text-field", "body")
    pgembed(conninfo, "create", *names, "--model", str(make_tiny_model(tmp_path / "bin" / "tiny")))
    pgembed(conninfo, "enqueue", "reports")
    pgembed(conninfo, "service", "install", "--device", "cpu")
    command, environment = the_job(stand)
    done = "select done from pgembed.progress"

    with subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        cwd="/",
    ) as worker:
        try:
            wait_until(lambda: connection.value(done) == 3, "its records are embedded")
        finally:
            worker.send_signal(signal.SIGTERM)
    assert worker.returncode == 0


def test_installing_again_replaces_it_and_uninstalling_leaves_nothing(
    stand: Stand, conninfo: str
) -> None:
    pgembed(conninfo, "service", "install", "-c", "3")
    first, loaded = stand.files, stand.calls
    pgembed(conninfo, "service", "install", "-c", "3")
    assert (stand.files, stand.calls) == (first, loaded)
    pgembed(conninfo, "service", "install", "-c", "4")
    assert "--concurrency=4" in the_job(stand)[0]
    assert pgembed(conninfo, "service", "status").exit_code == 0

    said = pgembed(conninfo, "service", "uninstall").stdout

    assert stand.files == {}
    assert said.count("removed: ") == 2
    assert pgembed(conninfo, "service", "uninstall").stdout == "no service pgembed is installed\n"
    assert pgembed(conninfo, "service", "status").exit_code == 1


def test_what_the_manager_refuses_leaves_all_as_it_was(stand: Stand, conninfo: str) -> None:
    stand.refusing.write_text("restart\nbootstrap\n")
    failed = pgembed(conninfo, "service", "install")
    assert failed.exit_code == 1
    assert (failed.error or "").endswith(": no bus")
    assert stand.files == {}
    folders = {each.name for each in stand.home.rglob("*") if each.is_dir()}
    assert folders - {"Library", "Logs"} == {"bin"}, "every Mac has those two"

    stand.refusing.unlink()
    pgembed(conninfo, "service", "install", "-c", "3")
    before = stand.files
    stand.refusing.write_text("restart\nbootstrap\n")
    assert pgembed(conninfo, "service", "install", "-c", "4").exit_code == 1
    assert stand.files == before
    (dsn_file,) = (stand.home / name for name in before if name.endswith(".dsn"))
    assert stat.S_IMODE(dsn_file.stat().st_mode) == 0o600


def test_odd_values_arrive_as_they_are(stand: Stand, conninfo: str) -> None:
    place = ServicePlace.of("pgembed", is_system=False)

    install(place, (f"--pipeline={ODD}",), f"dbname='{ODD}'", environment={"HF_HOME": ODD})

    command, environment = the_job(stand)
    assert f"--pipeline={ODD}" in command
    assert environment["HF_HOME"] == ODD


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "a/b"), "give letters, digits"),
        (("--concurrency", "0"), "--concurrency 0"),
        (("--run-as", "me"), "--run-as goes with --system"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    stand: Stand, conninfo: str, words: tuple[str, ...], said: str
) -> None:
    failed = pgembed(conninfo, "service", "install", *words)

    assert failed.exit_code == 2
    assert said in (failed.error or "")
    assert stand.files == {}
    assert stand.calls == []


def test_machine_without_a_manager_is_told(
    stand: Stand, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    failed = pgembed(conninfo, "service", "install")

    assert failed.exit_code == 1
    assert (failed.error or "").startswith("there is no ")
    assert stand.files == {}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("is_system", [True, False])
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path, is_system: bool) -> None:
    job = Job(
        name="pgembed",
        command=(sys.executable, "-m", "pgqueue_embed", "work", ODD),
        environment={"HF_HOME": ODD},
        user=getpass.getuser() if is_system else None,
    )
    unit = tmp_path / "pgembed.service"
    unit.write_bytes(Systemd(is_system=is_system).content(job))

    level = "--system" if is_system else "--user"
    found = subprocess.run(
        ["systemd-analyze", level, "--man=no", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )

    about_it = [line for line in found.stderr.splitlines() if "pgembed.service" in line]
    assert about_it == [], found.stderr


def test_mac_stays_awake_and_the_command_is_no_text_of_the_shell(tmp_path: Path) -> None:
    job = plistlib.loads(Launchd(is_system=False).content(Job(name="pgembed", command=(ODD,))))
    shell, option, script, name, *words = job["ProgramArguments"]

    assert (shell, option, words[0]) == ("/bin/sh", "-c", ODD)
    assert script == 'caffeinate -i -s -w $$ & exec "$@"'
    caffeinate = tmp_path / "caffeinate"
    caffeinate.write_text('#!/bin/sh\necho "$@"\n')
    caffeinate.chmod(0o755)
    finished = subprocess.run(
        [shell, option, script, name, "printf", "%s", ODD],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ODD in finished.stdout
