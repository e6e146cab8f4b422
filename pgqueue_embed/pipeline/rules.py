"""The limits of options, each by itself."""

from __future__ import annotations

from pgqueue_embed.db.names import check_identifier
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import Option, check_where

# In the place of a prompt: none is put in front of a text, though the model names one.
NO_PROMPT = "none"


def check_prompt(option: Option, prompt: str) -> None:
    """Raise UsageError for an empty prompt."""
    if not prompt.strip():
        raise UsageError(
            f"{option.flag} is empty; leave it out for the model's own prompt, or give"
            f" {NO_PROMPT} for no prompt at all"
        )


def check_columns(option: Option, names: tuple[str, ...]) -> None:
    """Raise UsageError for what names no columns, or one twice."""
    for name in names:
        check_identifier(name)
        if names.count(name) > 1:
            raise UsageError(f"{option.flag} names '{name}' twice")


def check_where_option(_option: Option, where: object) -> None:
    """Raise UsageError for what is no text of a condition, or an empty one."""
    check_where(where)
