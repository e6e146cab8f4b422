"""Dockerfile and compose.yaml, as far as that can be known without Docker."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hatchling.builders.wheel import WheelBuilder
from psycopg.conninfo import conninfo_to_dict
from typer.main import get_command

from pgqueue_embed.cli.app import app
from pgqueue_embed.configuration.conninfo import DSN_FILE_VARIABLE
from pgqueue_embed.web_server.api_key import find_api_key

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of compose.yaml."""
    services: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    return services


def test_package_is_built_of_what_the_image_is_given(tmp_path: Path) -> None:
    root = tmp_path / "app"
    root.mkdir()
    for sources, target in re.findall(r"^COPY (.+) (\S+)$", dockerfile(), re.MULTILINE):
        for source in sources.split():
            given = REPOSITORY / source
            if given.is_dir():
                shutil.copytree(given, root / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(given, root / target)

    (wheel,) = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])

    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(REPOSITORY))
        for path in REPOSITORY.glob("pgqueue_embed/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(path.endswith(".css") for path in package)
    assert package <= names
    migrations = {path.name for path in REPOSITORY.glob("migrations/*.sql")}
    assert {f"pgqueue_embed/migrations/{name}" for name in migrations} <= names


def test_services_run_commands_that_there_are(services: dict[str, Any]) -> None:
    commands = [each["command"] for each in services.values() if "build" in each]
    assert sorted(name for name, *_ in commands) == ["migrate", "web", "work"]
    root: Any = get_command(app)
    for name, *arguments in commands:
        root.commands[name].make_context(name, arguments)  # refuses an option that is none
    assert 'ENTRYPOINT ["pgembed"]' in dockerfile()


def test_steps_of_the_document_write_the_secrets_that_services_read(
    services: dict[str, Any], tmp_path: Path
) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(mkdir -p secrets\n.*?)```", page, re.DOTALL)
    steps, _, docker = block.partition("docker ")
    assert docker.startswith("compose up")
    subprocess.run(["sh", "-eu", "-c", steps], cwd=tmp_path, check=True)

    secrets = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["secrets"]
    named = {each["file"] for each in secrets.values()} | {services["web"]["env_file"]}
    assert {f"./secrets/{each.name}" for each in (tmp_path / "secrets").iterdir()} == named
    name, _, value = (tmp_path / services["web"]["env_file"]).read_text().partition("=")
    assert find_api_key(None, {name: value}) is not None
    password = (tmp_path / "secrets" / "password").read_text().strip()
    conninfo = (tmp_path / "secrets" / "dsn").read_text().strip()
    database = services["database"]["environment"]
    assert conninfo_to_dict(conninfo) == {
        "user": database["POSTGRES_USER"],
        "password": password,
        "host": "database",
        "dbname": database["POSTGRES_DB"],
    }


def test_no_password_is_in_the_files_or_the_repository(services: dict[str, Any]) -> None:
    for service in services.values():
        names = set(service["environment"])
        assert "build" not in service or names == {DSN_FILE_VARIABLE}
        assert not {name for name in names if "PASSWORD" in name and not name.endswith("_FILE")}
    for ignoring in (".gitignore", ".dockerignore"):
        lines = (REPOSITORY / ignoring).read_text().splitlines()
        assert {"secrets", "secrets/"} & set(lines), ignoring


def dockerfile() -> str:
    return (REPOSITORY / "Dockerfile").read_text()
