"""Keys and values of a configuration file: known, of the right type, and never a password.

No message repeats a value: one that stands in the wrong place may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pgqueue_embed.errors import PgembedError, UsageError

NOT_HERE = "no password belongs into this file; put it into PGPASSWORD or ~/.pgpass"

# How people spell it, and what a slip of the finger makes of that.
_PASSWORD = re.compile(r"pass|pwd|secret|^pw$", re.IGNORECASE)
_PASSWORDS = ("password", "passwd", "db_password", "pgpassword")
_LIKENESS = 0.75

_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")

_TYPES: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


class ConfigurationError(UsageError):
    """A configuration file cannot be read, or says what cannot be."""


@dataclass(frozen=True)
class Place:
    """A table of a file, as errors name it: ``pgembed.toml, pipeline 'reports'``.

    `keys` are those that stand for options of the command line.
    """

    name: str
    keys: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def error(self, text: str) -> ConfigurationError:
        """Return the error that `text` is wrong here."""
        return ConfigurationError(f"{self.name}: {text}")

    def check_keys(self, given: Iterable[str], known: Collection[str]) -> None:
        """Raise ConfigurationError for a key that is not `known`, naming one that is like it."""
        for key in given:
            if key in known:
                continue
            if is_password(key):
                raise self.error(f"'{key}': {NOT_HERE}")
            raise self.error(f"unknown key '{key}'; {_hint(key, known)}")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say of errors raised within that they are from here, with keys in place of options."""
        try:
            yield
        except PgembedError as error:
            raise type(error)(f"{self.name}: {_OPTION.sub(self._key, str(error))}") from None

    def _key(self, option: re.Match[str]) -> str:
        key = option[1].replace("-", "_")
        return key if key in self.keys else option[0]

    def of_type(self, key: str, value: Any, *types: type) -> Any:
        """Return `value`; raises ConfigurationError unless it is of one of `types`."""
        # A bool is an int only for Python.
        if type(value) not in types:
            wanted = " or ".join(_TYPES[each] for each in types)
            raise self.error(f"{key} is {type_name(value)}; give {wanted}")
        if "\x00" in str(value):
            raise self.error(f"{key} holds a NUL character, which PostgreSQL has in no text")
        return value


def _hint(key: str, known: Collection[str]) -> str:
    near = get_close_matches(key, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(known)}" if known else "write a table for each pipeline"


def type_name(value: Any) -> str:
    """Return what a person calls the type of a value."""
    return _TYPES.get(type(value), "a date or time")


def is_password(key: str) -> bool:
    """Return whether an unknown key is, or is meant to be, that of a password."""
    likely = get_close_matches(key.lower(), _PASSWORDS, 1, _LIKENESS)
    return bool(_PASSWORD.search(key) or likely)
