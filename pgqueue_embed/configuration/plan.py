"""Compares the pipelines that a file declares with those of the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pgqueue_embed.configuration.declared import SYNC, Declared, declared_settings
from pgqueue_embed.configuration.values import Value, value_text
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.options import ALTERABLE
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import AUTO
from pgqueue_embed.untrusted.shell import command


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting that is another way in the file than in the database; None where it is not set.

    It takes effect `at_once`, or else by a next generation.
    """

    key: str
    present: Value | None
    wanted: Value | None
    at_once: bool


@dataclass(frozen=True, kw_only=True)
class PlannedPipeline:
    """A declared pipeline beside that of the database, which is None for a new one.

    `successor` is its next generation, which has all that the file wants of vectors.
    `differences` are what is to be altered, those of the successor no more.
    """

    declared: Declared
    pipeline: Pipeline | None = None
    successor: Pipeline | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be done."""
        return self.pipeline is not None and not self.differences

    @property
    def must_turn_sync(self) -> bool:
        """Whether the capture of changes is to be turned on, or off."""
        return any(each.key == SYNC for each in self.differences)

    @property
    def changes(self) -> Changes:
        """The other differences, as what is to be altered."""
        wanted: dict[str, Any] = {**vars(self.declared.spec), "model": self.declared.model}
        options = [ALTERABLE[each.key] for each in self.differences if each.key != SYNC]
        return Changes(**{each.field: _asked(each, wanted[each.field]) for each in options})


def _asked(option: Option, value: Any) -> Any:
    """Return how a value is asked for: an empty one takes away what may go, None would keep it."""
    return "" if value is None and option.may_go else value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All declared pipelines as they compare, and those that only the database has."""

    comparisons: tuple[PlannedPipeline, ...]
    undeclared: tuple[Pipeline, ...]

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be done."""
        return all(each.is_settled for each in self.comparisons)


def make_plan(connection: Connection, declared: Sequence[Declared]) -> Plan:
    """Return what is to be done so that the database has the `declared` pipelines.

    Raises UsageError for what cannot be altered, or not while a next generation is being made.
    """
    present = load_pipelines(connection)
    names = {each.spec.name for each in declared}
    return Plan(
        comparisons=tuple(_comparison(connection, each, present) for each in declared),
        undeclared=tuple(
            each
            for each in present
            if each.name not in names and _first(present, id=each.successor_of) is None
        ),
    )


def _comparison(
    connection: Connection, declared: Declared, present: Sequence[Pipeline]
) -> PlannedPipeline:
    pipeline = _first(present, name=declared.spec.name)
    if pipeline is None:
        _check_is_not_renamed(declared, present)
        return PlannedPipeline(declared=declared)
    former = _first(present, id=pipeline.successor_of)
    if former is not None:
        raise declared.place.error(
            f"it is the next generation of pipeline '{former.name}'; declare that one"
        )
    differences = _differences(declared, declared_settings(connection, pipeline))
    _check_can_be_altered(declared, differences)
    successor = _first(present, successor_of=pipeline.id)
    if successor is not None:
        differences = _differences(declared, declared_settings(connection, pipeline, successor))
        _check_successor(declared, differences)
    return PlannedPipeline(
        declared=declared, pipeline=pipeline, successor=successor, differences=differences
    )


def _first(pipelines: Iterable[Pipeline], **value: object) -> Pipeline | None:
    """Return the pipeline whose field has this value, or None."""
    ((field, wanted),) = value.items()
    return next((each for each in pipelines if getattr(each, field) == wanted), None)


def _differences(declared: Declared, present: dict[str, Value]) -> tuple[Difference, ...]:
    wanted = declared.values
    keys = [
        key
        for key in dict.fromkeys((*wanted, *present))
        if wanted.get(key) not in (present.get(key), AUTO)
    ]
    options = [ALTERABLE[key] for key in keys if key in ALTERABLE]
    new_vectors = any(each.alters_vectors for each in options)
    waiting = {
        each.name for each in options if each.alters_vectors or (each.with_vectors and new_vectors)
    }
    return tuple(
        Difference(
            key=key, present=present.get(key), wanted=wanted.get(key), at_once=key not in waiting
        )
        for key in keys
    )


def _check_is_not_renamed(declared: Declared, present: Iterable[Pipeline]) -> None:
    name = declared.spec.name
    for each in present:
        if each.spec.destination == declared.spec.destination:
            raise declared.place.error(
                f"its target, {each.target}, is that of pipeline '{each.name}'; if that one"
                f" is to be called '{name}' now: {command('alter', each.name, '--rename', name)}"
            )


def _check_can_be_altered(declared: Declared, differences: Sequence[Difference]) -> None:
    for each in differences:
        if each.key not in (SYNC, *ALTERABLE):
            raise declared.place.error(
                f"{each.key} cannot be altered from {value_text(each.present)} to"
                f" {value_text(each.wanted)}; write it back, or declare a pipeline of another"
                f" name and target_table, or remove this one first:"
                f" {command('drop', declared.spec.name)}"
            )


def _check_successor(declared: Declared, differences: Sequence[Difference]) -> None:
    """Raise ConfigurationError unless the file wants what the next generation already is."""
    for each in differences:
        if not each.at_once:
            raise declared.place.error(
                f"its next generation has {each.key} {value_text(each.present)}, and the file says"
                f" {value_text(each.wanted)}; write it so, or end that generation first:"
                f" {command('alter', declared.spec.name, '--switch')}, or --abort"
            )
