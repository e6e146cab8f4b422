"""Reading a TOML file, with one line for a person when it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pgqueue_embed.configuration.keys import ConfigurationError, Place
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_bounded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FILE = Path("pgembed.toml")

# A file of a thousand pipelines.
MOST_BYTES = 4 * 1024**2

TABLES = ("database", "pipelines")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a configuration file.

    Raises ConfigurationError when it is not there, cannot be read, is not TOML, or has other
    tables than a configuration file has.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_bounded(path, MOST_BYTES))
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no file {path}; to write one of the pipelines that are there:"
            " pgembed show --toml > pgembed.toml"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnreadableFile as error:
        raise ConfigurationError(f"{error}; it is no configuration file") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is not TOML: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    place = Place(str(path))
    place.check_keys(values, TABLES)
    for name in TABLES:
        place.of_type(name, values.get(name, {}), dict)
    return values
