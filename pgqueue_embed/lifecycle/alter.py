"""Altering a pipeline: at once what leaves its vectors alone, by a new generation what does not.

A new generation is a pipeline of its own, `NAME (next)`, with its own target table, queue and
ledger; workers know nothing of it. Searches go on with the old vectors until `switch` puts the
new table in the old one's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import dependents, first_line
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.create import (
    Prepared,
    check_condition_is_apart,
    create_pipeline,
    prepare,
)
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.replace import replacement_of
from pgqueue_embed.lifecycle.replace_table import renew_own_view
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.generations import is_next, successor_of
from pgqueue_embed.pipeline.model import check_local_model
from pgqueue_embed.pipeline.options import ALTERABLE
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import NEXT_NAME, check_name, check_one_document, checked
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.adoptions import check_adopted
from pgqueue_embed.queue.deleted import enqueue_deleted
from pgqueue_embed.queue.enqueue import Selection, Slice, enqueue
from pgqueue_embed.target import target_of, view_of
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.vector_search.lexical_index import check_has_texts

DELETED_SLICE_RECORDS = 50_000

# By the field that holds them.
ALTERED = {option.field: option for option in ALTERABLE.values()}
AT_ONCE = ("name", *(field for field, each in ALTERED.items() if not each.alters_vectors))
WITH_VECTORS = tuple(field for field, each in ALTERED.items() if each.with_vectors)


class Changes:
    """What is to be another way: `given`, by field of PipelineSpec, or the model.

    Fields of AT_ONCE take effect at once, any of the others by a new generation, which those of
    WITH_VECTORS go along with. None stays as it is, and an empty value takes away what may go.
    """

    def __init__(self, **given: Any) -> None:
        """Raise UsageError for a value that no pipeline can have."""
        unknown = given.keys() - {"name", *ALTERED}
        if unknown:
            raise TypeError(f"no such setting can be altered: {', '.join(unknown)}")
        self.given = {field: value for field, value in given.items() if value is not None}
        if self.name is not None:
            check_name(self.name)
        for field in self.given.keys() & set(AT_ONCE) & ALTERED.keys():
            if self.given[field] or not ALTERED[field].may_go:
                ALTERED[field].check(self.given[field])
        check_one_document(self.given.get("text_fields", ()), self.given.get("template"))

    @property
    def name(self) -> str | None:
        """What the pipeline is to be called."""
        return self.given.get("name")

    @property
    def at_once(self) -> dict[str, object]:
        """The values that take effect at once, by column; None for what is taken away."""
        waiting = WITH_VECTORS if self.alter_vectors else ()
        values = {each: self.value(each) for each in AT_ONCE if each in {*self.given} - {*waiting}}
        if "index_method" in values and values["index_method"] is None:
            values.setdefault("quantize", "none")  # it was of that index
        return values

    def value(self, field: str) -> Any:
        """Return a value that is given, or what an empty one stands for that takes away."""
        value = self.given[field]
        may_go = field in ALTERED and ALTERED[field].may_go
        return ALTERED[field].nothing if may_go and not value else value

    @property
    def alter_vectors(self) -> bool:
        """Whether anything is asked for that may alter vectors."""
        return bool(self.given.keys() - set(AT_ONCE))


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """Changes of `pipeline` that can be made: everything about a successor is checked."""

    pipeline: Pipeline
    changes: Changes
    successor: Prepared | None


def alter(connection: Connection, pipeline: Pipeline, changes: Changes) -> Pipeline | None:
    """Apply `changes`, all of them or none, and return the successor if they alter vectors.

    The successor has nothing queued yet: see `catch_up`. Raises as `prepare_alteration` does.
    """
    finish(connection, pipeline)
    return carry_out(connection, prepare_alteration(connection, pipeline, changes))


def prepare_alteration(connection: Connection, pipeline: Pipeline, changes: Changes) -> Alteration:
    """Check `changes`, and alter nothing; the model is loaded, so no transaction is open.

    Raises UsageError for changes that no pipeline can have or that change nothing, or when the
    pipeline has a successor already.
    """
    if not changes.given:
        raise UsageError("nothing to alter; say what, e.g. --chunk-size 200 or --priority 20")
    _check_quantize(pipeline, changes)
    if changes.given.get("lexical"):
        check_has_texts(pipeline)
    successor = _prepare(connection, pipeline, changes) if changes.alter_vectors else None
    return Alteration(pipeline=pipeline, changes=changes, successor=successor)


def _check_quantize(pipeline: Pipeline, changes: Changes) -> None:
    """Raise UsageError where it would mean nothing: workers build no index of this pipeline."""
    wanted = changes.given.get("quantize", "none")
    is_declared = (
        changes.value("index_method")
        if "index_method" in changes.given
        else pipeline.spec.index_method
    )
    if wanted != "none" and not is_declared:
        build = command("index", pipeline.name, "--quantize", str(wanted))
        raise UsageError(
            f"--quantize {wanted} is of the index that workers build, and {pipeline.name} declares"
            f" none: add --index hnsw, or build one yourself: {build}"
        )


def carry_out(connection: Connection, alteration: Alteration) -> Pipeline | None:
    """Make the changes, all of them or none, and return the successor if there is one.

    Raises UsageError when the new name is taken, or the role may not make the successor.
    """
    pipeline, changes, prepared = alteration.pipeline, alteration.changes, alteration.successor
    try:
        with connection.transaction():
            _alter_at_once(connection, pipeline, changes)
            return _make_successor(connection, pipeline, prepared) if prepared else None
    except psycopg.errors.UniqueViolation:
        raise UsageError(f"there is a pipeline '{changes.name}' already") from None


# The successor goes along, so that it is always called after its pipeline; but for the view.
ALTER_AT_ONCE = """
update pgembed.pipelines
set {settings}
where id = %(id)s or successor_of = %(id)s
"""
OWN_SETTINGS = {
    "name": "name = case when id = %(id)s then %(name)s else %(next_name)s end",
    "view": "view = case when id = %(id)s then %(view)s::boolean else view end",
}


def _alter_at_once(connection: Connection, pipeline: Pipeline, changes: Changes) -> None:
    values = changes.at_once
    if not values:
        return
    next_name = changes.name + NEXT_NAME if changes.name else None
    settings = sql.SQL(", ").join(map(_setting, values))
    connection.execute(
        sql.SQL(ALTER_AT_ONCE).format(settings=settings),
        {**values, "id": pipeline.id, "next_name": next_name},
    )
    view = changes.given.get("view")
    if view is not None:
        _alter_view(connection, pipeline, wanted=view)


def _setting(column: str) -> sql.Composable:
    if column in OWN_SETTINGS:
        return sql.SQL(OWN_SETTINGS[column])
    return sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder(column))


def _alter_view(connection: Connection, pipeline: Pipeline, *, wanted: bool) -> None:
    """Make the view of the pipeline's target, anew if it is there, or drop it."""
    wanted_spec = replace(pipeline.spec, view=wanted)
    view = view_of(wanted_spec, pipeline.key, pipeline.document)
    try:
        if wanted and not pipeline.spec.view:
            view.check(connection)
        if wanted:
            renew_own_view(connection, view)
        elif pipeline.spec.view:
            view.drop(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise UsageError(f"this role may not change {view.table}: {first_line(error)}") from None
    except psycopg.errors.DependentObjectsStillExist as error:
        raise UsageError(f"{view.table} is used: {dependents(error)}; drop that first") from None


def _prepare(connection: Connection, pipeline: Pipeline, changes: Changes) -> Prepared:
    """Check everything about the successor."""
    if is_next(connection, pipeline):
        raise UsageError(
            f"{pipeline.name} is itself a next generation; alter the pipeline it is of"
        )
    if successor_of(connection, pipeline) is not None:
        raise UsageError(
            f"{pipeline.name} has a next generation already; switch to it or give it up first:"
            f" {command('alter', pipeline.name, '--switch')}, or --abort"
        )
    check_adopted(connection, pipeline)
    spec = _next_spec(pipeline, changes)
    model = changes.given.get("model")
    if model is None:
        check_local_model(pipeline)
        prepared = prepare(connection, spec, pipeline.model, pipeline.model_revision)
    else:
        prepared = prepare(connection, spec, model)
    check_condition_is_apart(connection, prepared.spec, pipeline.spec.into_column)
    place = {each: getattr(pipeline.spec, each) for each in ("target", "into_column", "view")}
    same = replace(prepared.spec, name=pipeline.name, **place) == pipeline.spec
    if same and prepared.model.fingerprint == pipeline.model_fingerprint:
        raise UsageError(f"{pipeline.name} is like that already; nothing would be embedded anew")
    return prepared


def _next_spec(pipeline: Pipeline, changes: Changes) -> PipelineSpec:
    wanted = {each: changes.value(each) for each in changes.given if each not in ("model", "view")}
    if "template" in wanted:
        wanted["text_fields"] = ()
    elif "text_fields" in wanted:
        wanted["template"] = None
    wanted["name"] = wanted.get("name", pipeline.name) + NEXT_NAME
    return checked(replace(pipeline.spec, **target_of(pipeline).next_place, **wanted))


def _make_successor(connection: Connection, pipeline: Pipeline, prepared: Prepared) -> Pipeline:
    made = create_pipeline(connection, prepared.spec, prepared.shape, prepared.model)
    connection.execute(
        "update pgembed.pipelines set successor_of = %s where id = %s", (pipeline.id, made.id)
    )
    old, new = target_of(pipeline), target_of(made)
    if not made.target_is_made:
        raise UsageError(f"{new} is there already, and not pgembed's; rename it")
    try:
        replacement_of(pipeline, made).copy_rights(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise UsageError(
            f"cannot give {new} the rights of {old}: {first_line(error)};"
            " alter it as the owner of that table"
        ) from None
    successor = load_pipeline(connection, made.name)
    if capture.is_on(connection, pipeline):
        capture.install(connection, successor)
    return successor


# OFFSET keeps it from becoming a join, which would read the whole ledger for every slice.
KNOWN = """
exists (
    select
    from pgembed.records as known
    where known.pipeline_id = {pipeline_id}
        and known.state is not null
        and known.key = pgembed.ledger_key({key}) collate "C"
    offset 0
)
"""


def catch_up(
    connection: Connection,
    pipeline: Pipeline,
    successor: Pipeline,
    *,
    on_slice: Callable[[Slice], None] = lambda _: None,
) -> int:
    """Queue for `successor` what `pipeline` has seen and it has not; returns how many records.

    Those that changed, or that the source has lost, since the successor saw them count too. Under
    another condition, all its records are queued.
    """
    selection = Selection()
    if pipeline.spec.where == successor.spec.where:
        known = sql.SQL(KNOWN).format(pipeline_id=pipeline.id, key=pipeline.key.text("source"))
        selection = Selection(where=known.as_string(connection))
    queued = enqueue(connection, successor, selection, on_slice=on_slice)
    return queued + enqueue_deleted(connection, successor, slice_records=DELETED_SLICE_RECORDS)


def abort(connection: Connection, pipeline: Pipeline) -> Pipeline:
    """Give the next generation up and leave nothing of it; returns what was given up.

    Waits for the claims that workers hold. Raises UsageError when there is none.
    """
    successor = successor_of(connection, pipeline)
    if successor is None:
        raise UsageError(f"{pipeline.name} has no next generation to give up")
    drop_pipeline(connection, successor, delete_vectors=True)
    return successor
