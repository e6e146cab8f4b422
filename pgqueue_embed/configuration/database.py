"""The table [database] of a configuration file: where the database is, and never a password."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from pgqueue_embed.configuration.keys import NOT_HERE, Place
from pgqueue_embed.configuration.toml_file import read_toml
from pgqueue_embed.db.dsn import normalise

# Keys, as the options --db-* have them, and what libpq calls the same.
PARTS = {"host": "host", "port": "port", "name": "dbname", "user": "user", "service": "service"}

_SECRET = re.compile("password|secret")


def declared_database(path: Path) -> dict[str, Any]:
    """Return what the file at `path` says of the database, by libpq's names.

    Raises ConfigurationError for what cannot be, and for a password.
    """
    place = Place(f"{path}, [database]")
    given = read_toml(path).get("database", {})
    place.check_keys(given, ("dsn", *PARTS))
    for key, value in given.items():
        place.of_type(key, value, int if key == "port" else str)
    if "dsn" not in given:
        return _parts(place, given)
    if len(given) > 1:
        raise place.error("dsn says all of it; leave the other keys out")
    return _dsn(place, given["dsn"])


def _parts(place: Place, given: dict[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if _holds_password(str(value)):
            raise place.error(f"{key}: {NOT_HERE}")
        if "://" in str(value):
            raise place.error(f"{key} holds a URL; write dsn = …")
    return {PARTS[key]: value for key, value in given.items()}


def _dsn(place: Place, dsn: str) -> dict[str, Any]:
    if _holds_password(dsn):
        raise place.error(f"dsn: {NOT_HERE}")
    values = conninfo_to_dict(normalise(dsn, f"{place}, dsn"))
    if any(_SECRET.search(name) for name in values):
        raise place.error(f"dsn: {NOT_HERE}")
    return values


def _holds_password(text: str) -> bool:
    """Return whether a URL has one behind its user; libpq would take an unescaped @ apart."""
    before_each_at = text.split("@")[:-1]
    return any(":" in part.partition("://")[2] for part in before_each_at)
