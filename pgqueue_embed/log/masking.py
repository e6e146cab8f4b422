"""Takes passwords out of what is logged or shown."""

from __future__ import annotations

import re

# What a line of a log, and a traceback in it, may have at most.
MOST_LOGGED_CHARACTERS = 20_000

_PASSWORD = re.compile(r"(password\s*=\s*)('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])+)", re.IGNORECASE)
_WORD = re.compile(r"\S+")
_USER = re.compile(r"://[^:/@]*:")


def mask(text: str) -> str:
    """Return `text` with the passwords of connection strings and URLs replaced by ``***``.

    It is cut to MOST_LOGGED_CHARACTERS first, and looked at a word at a time: what a server or a
    library repeats of a document must not cost more than its length.
    """
    is_whole = len(text) <= MOST_LOGGED_CHARACTERS
    shown = text[:MOST_LOGGED_CHARACTERS]
    masked = _WORD.sub(
        lambda word: _without_password(word[0], is_whole or word.end() < len(shown)),
        _PASSWORD.sub(r"\1***", shown),
    )
    return masked if is_whole else f"{masked}… ({len(text):,} characters)"


def _without_password(word: str, is_whole: bool) -> str:
    """Return `word` with ``***`` between the user of its first URL with one and the last @.

    An unescaped @ may be part of the password; in a word that was cut off, it may be in the rest.
    """
    end = word.rfind("@") if is_whole else len(word)
    user = _USER.search(word, 0, max(end, 0))
    return word if user is None else f"{word[: user.end()]}***{word[end:]}"
