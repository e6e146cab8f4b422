"""The options of a pipeline as keys of a configuration file: one table, read two ways."""

from __future__ import annotations

from typing import Any

from pgqueue_embed.configuration import Place
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.target_columns import TargetColumns


def read_key(key: Option, place: Place, value: Any) -> Any:
    """Return `value` as the option has it; raises ConfigurationError for another type."""
    if key.type is dict:
        return _pairs(place, key.name, value)
    if key.type is list:
        return _texts(place, key.name, value)
    return place.of_type(key.name, value, key.type)


def _texts(place: Place, key: str, value: Any) -> list[str]:
    """Return a text or a list of texts as an option that is given once or often."""
    if value == []:
        raise place.error(f"{key} is an empty list; leave it out, or give a name")
    if isinstance(value, list):
        return [place.of_type(f"a name in {key}", each, str) for each in value]
    return [place.of_type(key, value, str, list)]


def _pairs(place: Place, key: str, value: Any) -> list[str]:
    """Return a table as an option MEANING=NAME that is given for each of its keys."""
    pairs = []
    for meaning, name in place.of_type(key, value, dict).items():
        if not isinstance(getattr(TargetColumns(), meaning, ()), tuple):
            place.of_type(f"{key}.{meaning}", name, str)
        pairs.append(f"{meaning}={','.join(_texts(place, f'{key}.{meaning}', name))}")
    return pairs
