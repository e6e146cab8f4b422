"""Nothing in the folder in which pgembed is started takes the place of a module."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

import pgqueue_embed
from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.untrusted import search_path
from pgqueue_embed.worker.python_process import start_python
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline

PACKAGE = Path(pgqueue_embed.__file__).parent
SCRIPT = Path(sys.executable).with_name("pgembed")

# Looked for by libraries that do without: absent everywhere but in the working folder.
OPTIONAL = ("better_exceptions", "colorama", "orjson", "psycopg_c", "readline_hook", "yoyo_ext")

STATUS = {
    "script": [str(SCRIPT), "status"],
    "module": [sys.executable, "-m", "pgqueue_embed", "status"],
}


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with a file for every module that could be asked for, and `ran` once one runs."""
    folder = tmp_path / "trap"
    folder.mkdir()
    code = (
        f"open({str(folder / 'ran')!r}, 'a').write(__name__ + '\\n')\nraise ImportError('trap')\n"
    )
    for name in _modules() - _loaded_by_python():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


@cache
def _modules() -> set[str]:
    names = {*sys.stdlib_module_names, *metadata.packages_distributions(), *OPTIONAL}
    return {name for name in names if name.isidentifier()} - {"tests", "pgqueue_embed"}


@cache
def _loaded_by_python() -> set[str]:
    """What `python -m` and the script that pip makes import before there is anything of ours."""
    command = [sys.executable, "-c", "import re, runpy, sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


# By the look of it, none of them names the working folder. To Python, an empty one is none at all.
PYTHONPATHS = {"empty": "", "empty element": ":/nowhere"}


def variables(conninfo: str, pythonpath: str) -> dict[str, str]:
    mine = {"PGEMBED_DSN": conninfo, "OMP_NUM_THREADS": "1", "PYTHONPATH": pythonpath}
    return {**os.environ, **mine}


def ran(folder: Path) -> str:
    file = folder / "ran"
    return file.read_text(encoding="utf-8") if file.exists() else ""


@pytest.mark.parametrize("pythonpath", PYTHONPATHS.values(), ids=PYTHONPATHS)
@pytest.mark.parametrize("start", STATUS.values(), ids=STATUS)
def test_command_imports_nothing_from_the_working_folder(
    conninfo: str, start: list[str], trap: Path, pythonpath: str
) -> None:
    environment = variables(conninfo, pythonpath)
    done = subprocess.run(start, cwd=trap, env=environment, capture_output=True, text=True)
    assert ran(trap) == "", done.stderr
    assert done.returncode == 0, done.stderr


def test_worker_imports_nothing_from_the_working_folder(
    conninfo: str, connection: Connection, trap: Path, tmp_path: Path
) -> None:
    make_source(connection, texts(20))
    enqueue(connection, make_pipeline(connection), Selection())
    with (tmp_path / "log").open("wb") as log:
        arguments = ("work", "--drain")
        process = start_python(
            "tests.support.light_command",
            *arguments,
            environment=variables(conninfo, PYTHONPATHS["empty element"]),
            cwd=trap,
            stdout=log,
            stderr=log,
        )
        assert process.wait(120) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    assert ran(trap) == ""
    assert_converged(connection, "reports")


def test_pythonpath_that_is_named_is_searched(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('mine')\n", encoding="utf-8")
    for named in (str(tmp_path), "."):
        process = start_python(
            "mine",
            environment={**os.environ, "PYTHONPATH": named},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
        )
        assert process.communicate(timeout=60)[0] == b"mine\n"


@pytest.mark.parametrize(
    ("path", "named", "left"),
    [
        (["/here", "/lib", "/site"], "", ["/lib", "/site"]),
        (["/here", "/here", "/lib", "/site"], ":/x", ["/lib", "/site"]),
        (["/bin", "/here", "/lib", "/site", "/here"], ":", ["/bin", "/lib", "/site", "/here"]),
        (["/here", "/lib"], "/here", ["/here", "/lib"]),
        (["/here", "/src", "/lib"], "/src", ["/src", "/lib"]),
    ],
    ids=["python -m", "python -m, empty element", "editable install", "named", "another is named"],
)
def test_search_path_without_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, path: list[str], named: str, left: list[str]
) -> None:
    monkeypatch.setattr(search_path, "STANDARD_LIBRARY", "/lib")
    monkeypatch.setattr(search_path, "PACKAGE_PARENT", "/lib")
    assert search_path.without(path, "/here", named) == left


def test_package_stays_where_python_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_path, "STANDARD_LIBRARY", "/lib")
    monkeypatch.setattr(search_path, "PACKAGE_PARENT", "/checkout")
    left = search_path.without(["/checkout", "/lib", "/site"], "/checkout", "")
    assert left == ["/lib", "/site", "/checkout"]


def test_python_is_started_in_one_place() -> None:
    starting = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "sys.executable" in path.read_text(encoding="utf-8")
    }
    # A service manager starts a command as a person does, whose first deed is to leave out the
    # working folder.
    assert starting == {"worker/python_process.py", "service/install.py"}


def test_pipe_that_somebody_has_put_there_keeps_no_command_waiting(
    conninfo: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pgembed.toml")
    ran = subprocess.run(
        STATUS["script"],
        cwd=tmp_path,
        env={**os.environ, "PGEMBED_DSN": conninfo},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
