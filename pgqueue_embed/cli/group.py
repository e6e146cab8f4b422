"""The group of all commands: what it says of arguments that it cannot take, printably."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup, TyperOption

from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable

# Options that people know from MacM4VecFlow, and what does the same here.
NO_COORDINATOR = "there is no coordinator; workers talk to PostgreSQL alone, which --dsn names"
GONE = {
    "--role": "there are no roles; every machine runs the same command, pgembed work",
    "--host": NO_COORDINATOR,
    "--port": NO_COORDINATOR,
    "--coordinator-host": NO_COORDINATOR,
    "--coordinator-port": NO_COORDINATOR,
    "--worker-host": NO_COORDINATOR,
    "--worker-port": NO_COORDINATOR,
    "--worker-id": "workers number themselves; pgembed status shows them",
}

BEHIND = "write it behind the command: pgembed COMMAND"


class PrintableGroup(TyperGroup):
    """A group of commands like any other, but for the texts of its errors."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the arguments in front of the command."""
        with _printable_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of the command, and run it."""
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Of click, or of the copy of it that typer brings along, by its version.
        if hasattr(error, "format_message"):
            _say_where_it_is(error)
            vars(error)["message"] = printable(str(vars(error)["message"]), MOST_CHARACTERS)
        raise


def _say_where_it_is(error: Any) -> None:
    """Add to the message of an option that the command does not have what to use in its place."""
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if name is None or context is None or not hasattr(error, "possibilities"):
        return
    others = sorted(_having(context.find_root().command, name))
    if name in GONE:
        way = GONE[name]
    elif others:
        is_root = context.find_root() is context
        way = f"{BEHIND} {name} …" if is_root else f"it belongs to pgembed {', '.join(others)}"
    else:
        return
    error.message = f"{context.command_path} has no option {name}: {way}"
    error.possibilities = None


def _having(group: Any, option: str, path: str = "") -> Iterator[str]:
    """Yield the commands that have an option, by their path below `group`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _having(command, option, f"{path}{name} ")
        elif any(option in getattr(each, "opts", ()) for each in command.params):
            yield f"{path}{name}"


def show_no_type_of_flags() -> None:
    """Leave out of help texts that a flag is a <bool>: it takes no value that one could give."""
    shown = getattr(TyperOption, "display_type_rich", None)
    if shown is not None:  # else this version of typer does not say so

        def display(option: TyperOption, ctx: Any) -> str | None:
            return None if option.is_flag else shown(option, ctx)

        setattr(TyperOption, "display_type_rich", display)  # noqa: B010 (mypy takes it for typer's own)
