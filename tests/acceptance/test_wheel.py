"""The built wheel, in an environment of its own, far from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel alone; dependencies are borrowed.

    They come from the environment of the tests by a path file, which does not bring its editable
    install along: installing torch once more would take minutes.
    """
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment)
    binaries = environment / "bin"
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--no-compile", "--quiet", wheel)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return binaries


def run(*command: object, **variables: str) -> str:
    finished = subprocess.run(
        [str(part) for part in command],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_wheel_carries_its_migrations_and_applies_them(
    installed: Path, empty_conninfo: str
) -> None:
    migrations = sorted(path.stem for path in (REPOSITORY / "migrations").glob("*.sql"))
    output = run(installed / "pgembed", "migrate", PGEMBED_DSN=empty_conninfo)
    *applied, following = output.splitlines()
    assert [line.split() for line in applied] == [["applied", name] for name in migrations]
    assert following.startswith("next: pgembed create")
    again = run(installed / "pgembed", "migrate", PGEMBED_DSN=empty_conninfo)
    assert again.strip() == "schema pgembed is up to date"


def test_wheel_does_not_use_the_repository(installed: Path) -> None:
    program = "import pgqueue_embed.db.migrate as m; print(m.__file__, m.migrations_folder())"
    module, folder = run(installed / "python", "-c", program).split()
    environment = str(installed.parent)
    assert module.startswith(environment)
    assert folder.startswith(environment)
