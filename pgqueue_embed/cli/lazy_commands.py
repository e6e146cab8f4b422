"""Commands that are imported and read by typer when they are asked for, and no others with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer


class LazyCommands(Mapping[str, Any]):
    """Commands by their names, of modules that have a function `add_commands`.

    `modules` has the names of each module's commands. To go through the names imports nothing.
    """

    def __init__(self, modules: Mapping[str, tuple[str, ...]]) -> None:
        self._modules = {name: module for module, names in modules.items() for name in names}

    def __getitem__(self, name: str) -> Any:
        return _commands_of(self._modules[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


@cache
def _commands_of(module: str) -> Mapping[str, Any]:
    """Return the commands that a module adds, as typer makes them."""
    app = typer.Typer(rich_markup_mode="rich")
    # A single command would be the app itself, were there no callback.
    app.callback()(lambda: None)
    import_module(module).add_commands(app)
    group: Any = typer.main.get_command(app)
    return group.commands  # type: ignore[no-any-return]
