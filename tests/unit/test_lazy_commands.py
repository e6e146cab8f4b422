"""Commands that are imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import typer
from typer.main import get_command

from pgqueue_embed.cli.app import COMMANDS, app


@pytest.mark.parametrize("file", COMMANDS)
def test_table_names_the_commands_that_a_file_adds(file: str) -> None:
    added = typer.Typer()
    added.callback()(lambda: None)
    importlib.import_module(f"pgqueue_embed.cli.{file}").add_commands(added)
    group: Any = get_command(added)
    assert set(group.commands) == set(COMMANDS[file])


def test_command_that_there_is_not_is_none() -> None:
    root: Any = get_command(app)
    assert root.get_command(None, "absent") is None
    assert "absent" not in root.commands
    assert root.commands["search"] is root.commands["search"]
