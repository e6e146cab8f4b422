"""The options of `create` as keys of a configuration file: one list, read two ways."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from typer.models import OptionInfo

from pgqueue_embed.cli.pipeline_options import WantedPipeline
from pgqueue_embed.configuration import Place
from pgqueue_embed.tables import TargetColumns


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a table [pipelines.NAME]: the option of that name, with underscores."""

    name: str
    field: str
    default: Any
    help: str
    panel: str
    takes_list: bool
    takes_table: bool
    type: type

    def read(self, place: Place, value: Any) -> Any:
        """Return `value` as the option has it; raises ConfigurationError for another type."""
        if self.takes_table:
            return _pairs(place, self.name, value)
        if self.takes_list:
            return _texts(place, self.name, value)
        return place.of_type(self.name, value, self.type)


@cache
def pipeline_keys() -> dict[str, Key]:
    """Return every key of a pipeline by its name, in the order of the options."""
    hints = get_type_hints(WantedPipeline, include_extras=True)
    keys = [_key(each.name, each.default, hints[each.name]) for each in fields(WantedPipeline)]
    return {key.name: key for key in keys}


def _key(field: str, default: Any, annotated: Any) -> Key:
    type_, option = get_args(annotated)
    types = [each for each in get_args(type_) or (type_,) if each is not NoneType]
    takes_list = types == [list[str]]
    return Key(
        name=_spelling(option).removeprefix("--").replace("-", "_"),
        field=field,
        default=None if default is MISSING else default,
        help=option.help,
        panel=option.rich_help_panel,
        takes_list=takes_list,
        takes_table=takes_list and "=" in (option.metavar or ""),
        type=str if takes_list else types[0],
    )


def _spelling(option: OptionInfo) -> str:
    # Within Annotated, typer takes the first argument, called default, for a spelling.
    return str([option.default, *(option.param_decls or ())][0])


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
