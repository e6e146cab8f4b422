"""Reading the pipelines that a configuration file declares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgqueue_embed.cli.pipeline_keys import read_key
from pgqueue_embed.cli.pipeline_options import WantedPipeline
from pgqueue_embed.configuration import Place, declared_database, read_toml
from pgqueue_embed.configuration.declared import Declared
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS


def read_pipelines(path: Path) -> list[Declared]:
    """Return the pipelines that the file at `path` declares, in its order.

    Raises ConfigurationError, with the file, the pipeline and the key, for what cannot be,
    whether it is of a pipeline or of the database.
    """
    declared_database(path)
    tables = read_toml(path).get("pipelines", {})
    if not tables:
        raise Place(str(path)).error("no pipeline in it; write a table [pipelines.NAME]")
    declared = [_declared(path, name, table) for name, table in tables.items()]
    _check_targets(declared)
    return declared


def _declared(path: Path, name: str, table: Any) -> Declared:
    place = Place(f"{path}, pipeline '{name}'", frozenset(PIPELINE_OPTIONS))
    _check_table(Place(f"{path}, [pipelines]"), name, table)
    place.check_keys(table, PIPELINE_OPTIONS)
    table = _flat(place, table)
    values = {key: read_key(PIPELINE_OPTIONS[key], place, value) for key, value in table.items()}
    with place.explaining():
        wanted = WantedPipeline(**values)
        spec = wanted.spec(name)
        return Declared(spec=spec, model=wanted.model, sync=wanted.sync, place=place)


# A table of this key says several things of one: the keys in it, with those that they stand for.
INDEX_KEYS = {"method": "index", "quantize": "quantize"}


def _flat(place: Place, table: dict[str, Any]) -> dict[str, Any]:
    """Return a pipeline's keys with ``index = { method = …, quantize = … }`` as two of them."""
    index = table.get("index")
    if not isinstance(index, dict):
        return table
    place.check_keys(index, INDEX_KEYS)
    if "method" not in index:
        raise place.error('index has no method; write index = { method = "hnsw" }')
    if "quantize" in index and "quantize" in table:
        raise place.error("quantize stands in index and beside it; leave one out")
    return {**table, **{INDEX_KEYS[key]: value for key, value in index.items()}}


def _check_table(place: Place, name: str, table: Any) -> None:
    """Raise ConfigurationError unless what is called `name` looks like one pipeline."""
    if not isinstance(table, dict):
        place.check_keys([name], ())
    inner = [key for key, value in table.items() if isinstance(value, dict)]
    if inner and inner[0] not in PIPELINE_OPTIONS:
        dotted = f"{name}.{inner[0]}"
        raise place.error(
            f"{dotted} is a table in a table; a name with a dot in it is written"
            f' [pipelines."{dotted}"]'
        )


def _check_targets(declared: Sequence[Declared]) -> None:
    seen: dict[Any, Declared] = {}
    for each in declared:
        first = seen.setdefault(each.spec.destination, each)
        if first is not each:
            key = "target_table" if each.spec.into_column is None else "into_column"
            raise each.place.error(
                f"its target, {each.spec.target}, is that of pipeline '{first.spec.name}' too;"
                f" name another: {key} = …"
            )
