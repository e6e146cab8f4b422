"""The one line that is said of arguments which a command cannot take, with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgqueue_embed.pipeline.option import CALLED, shown
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

# The commands in place of its own.
WORKING = ("pgembed", "pgembed work", "pgembed run")

BEHIND = "write it behind the command: pgembed COMMAND"


def in_one_line(error: Any, group: Any = None) -> str:
    """Return what is wrong with arguments, where typer would print a box.

    `group` is the context that reads those of a command.
    """
    command = _command(getattr(error, "ctx", None), group)
    told = _where_it_is(error, command) or _wrong_value(error) or error.format_message()
    line = printable(told, MOST_CHARACTERS).rstrip(".")
    return f"{line[:1].lower()}{line[1:]} (see {command} --help)"


def _command(context: Any, group: Any) -> str:
    """Return the command line up to where the arguments of the context begin."""
    if context is None:
        return f"pgembed {getattr(group, 'invoked_subcommand', None) or ''}".strip()
    names = []
    while context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return " ".join(("pgembed", *reversed(names)))


def _wrong_value(error: Any) -> str | None:
    """Return which value of which argument is not of its type; None for another error."""
    faults = getattr(error.__cause__, "errors", None)
    param = getattr(error, "param", None)
    if faults is None or param is None:
        return None
    fault = faults()[0]
    # The kinds of pydantic's errors begin with the type that was wanted.
    type_name = fault["type"].partition("_")[0]
    wanted = {type_.__name__: called for type_, called in CALLED.items()}.get(type_name)
    if wanted is None:
        return None
    return f"{max(param.opts, key=len)} {shown(fault['input'])}: give {wanted}"


def _where_it_is(error: Any, command: str) -> str | None:
    """Return what to use in the place of an option that the command does not have, if anything."""
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if name is None or context is None or not hasattr(error, "possibilities"):
        return None
    others = sorted(_having(context.find_root().command, name))
    if name in GONE and command in WORKING:
        way = GONE[name]
    elif others:
        is_root = context.find_root() is context
        way = f"{BEHIND} {name} …" if is_root else f"it belongs to pgembed {', '.join(others)}"
    else:
        return None
    return f"{command} has no option {name}: {way}"


def _having(group: Any, option: str, path: str = "") -> Iterator[str]:
    """Yield the commands that have an option, by their path below `group`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _having(command, option, f"{path}{name} ")
        elif any(option in getattr(each, "opts", ()) for each in command.params):
            yield f"{path}{name}"
