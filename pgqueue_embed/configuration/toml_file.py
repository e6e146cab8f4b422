"""Reading a TOML file, with one line for a person when it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pgqueue_embed.configuration.keys import ConfigurationError, Place

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FILE = Path("pgembed.toml")

TABLES = ("database", "pipelines")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a configuration file.

    Raises ConfigurationError when it is not there, cannot be read, is not TOML, or has other
    tables than a configuration file has.
    """
    try:
        # An editor on Windows may have put a mark before the text.
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no file {path}; to write one of the pipelines that are there:"
            " pgembed show --toml > pgembed.toml"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    place = Place(str(path))
    place.check_keys(values, TABLES)
    for name in TABLES:
        place.of_type(name, values.get(name, {}), dict)
    return values
