"""Options that were given with nothing in them, as a variable of a shell that is not set does."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pgqueue_embed.errors import UsageError

# What has a word of its own for it, or is a key, which may be an empty text.
MAY_BE_EMPTY = ("dsn", "where", "key", "same_error_as")


def refuse_empty_options(ctx: Any, may_be_empty: Collection[str]) -> None:
    """Raise UsageError for an option of the command that was given an empty value.

    Without that some would pass for ones that were left out. `may_be_empty` are the names of those
    to which an empty value means something, besides `MAY_BE_EMPTY`.
    """
    for each in ctx.command.params:
        if each.param_type_name != "option" or each.name in {*MAY_BE_EMPTY, *may_be_empty}:
            continue
        flag, value = [*each.opts, *each.secondary_opts][0], ctx.params.get(each.name)
        if value == "" or (isinstance(value, (list, tuple)) and "" in value):
            raise UsageError(f"{flag} is empty; leave it out, or give a value")
        # Of an empty path, typer makes that of the working folder.
        if value == Path():
            raise UsageError(f"{flag} names no file; give one, or leave it out")
