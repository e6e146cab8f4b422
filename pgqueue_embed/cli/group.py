"""The group of all commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup, TyperOption

from pgqueue_embed.errors import UsageError


class OneLineGroup(TyperGroup):
    """A group of commands like any other, but for its errors, which are one line."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the arguments in front of the command."""
        with _said_in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of the command, and run it."""
        with _said_in_one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _said_in_one_line(context: Any = None) -> Iterator[None]:
    """Raise UsageError for arguments that typer cannot read."""
    try:
        yield
    except Exception as error:
        # Of click, or of the copy of it that typer brings along, by its version. Without any
        # argument the help is shown.
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        from pgqueue_embed.cli.wrong_arguments import in_one_line

        raise UsageError(in_one_line(error, context)) from None


def show_no_type_of_flags() -> None:
    """Leave out of help texts that a flag is a <bool>: it takes no value that one could give."""
    shown = getattr(TyperOption, "display_type_rich", None)
    if shown is not None:  # else this version of typer does not say so

        def display(option: TyperOption, ctx: Any) -> str | None:
            return None if option.is_flag else shown(option, ctx)

        setattr(TyperOption, "display_type_rich", display)  # noqa: B010 (mypy takes it for typer's own)
