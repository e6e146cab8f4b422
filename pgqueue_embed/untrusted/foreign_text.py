"""Text that others wrote, made fit to be shown, logged and kept: errors, names, keys, documents.

What a database, a library or a model says may repeat a document: escape sequences that steer a
terminal, letters that turn the direction of a line around, a megabyte of it. Every step here takes
time in proportion to the text, and looks at no more of it than is shown.
"""

from __future__ import annotations

import re

# What is shown and kept of one message of others, and of a sentence of ours that repeats some.
MOST_CHARACTERS = 1_000
MOST_STORED_CHARACTERS = 4_000

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control characters, invisible and direction-turning ones, halves of surrogate pairs. Signs that
# Unicode counts among the latter though they are seen, such as Arabic number signs, stay.
_UNSHOWABLE = (
    "\x00-\x1f\x7f-\x9f"
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_RUN = re.compile(f"[{_UNSHOWABLE}]+")
# A line of output ends as ever, and JSON and TOML are laid out with tabs.
_BUT_LAYOUT = re.compile(f"(?![\n\t])[{_UNSHOWABLE}]")


def capped(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return `text`, or its first `most` characters and how many it has."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text):,} characters)"


def printable(text: str | None, most: int | None = None) -> str:
    """Return `text` on one line that does nothing but be read; of `most` characters, if given.

    White space is collapsed, and a run of invisible characters is one replacement character.
    """
    shown = text or ""
    if most is not None:
        shown = capped(shown, most)
    return _RUN.sub(REPLACEMENT, " ".join(shown.split()))


def printable_lines(text: str) -> str:
    """Return `text` made printable line by line, its indentation and empty lines kept."""
    return _BUT_LAYOUT.sub(REPLACEMENT, text)


def escaped(text: str) -> str:
    r"""Return JSON or TOML that means the same, with ``\u202e`` for invisible characters."""
    return _BUT_LAYOUT.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    # As JSON has it.
    return "".join(f"\\u{each:04x}" for each in _surrogates(code))


def _surrogates(code: int) -> tuple[int, int]:
    code -= 0x10000
    return 0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF)
