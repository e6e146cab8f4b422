"""The promise is kept for every kind of target, in whatever order people and workers do things.

Steps are statements of users and turns of workers. After each of them all that is stored is whole,
and at the end the oracle is asked. Tests that tell one story each stand in the files of what they
are about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.completeness import NotComplete
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import queue_missed, start_capture, stop_capture
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import SENTENCES
from tests.support.fakes import POISON
from tests.support.oracle import assert_consistent
from tests.support.prepared import Fill, filled_by
from tests.support.target_kinds import TARGET_KINDS, TargetKind, assert_true
from tests.support.working import drain, embed, open_session, work_once

Step = tuple[str, dict[str, Any]]


def ids(first: int) -> st.SearchStrategy[int]:
    """Return any id of eight; hypothesis begins with `first`."""
    return st.integers(first, 8) | st.integers(1, 8)


def step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """Return one call of a method of `Pipelines`, whose arguments hypothesis picks."""
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


# What the records do not begin with comes first.
SENTENCE = st.lists(st.sampled_from(SENTENCES[::-1]), min_size=1, max_size=4).map(" ".join)
BLANK = st.sampled_from([None, "", " \n"])
POISONED = st.just(f"a text with {POISON} in it")
KINDS = st.sampled_from(["malfunction", "injury", "other"])

WRITE = step("write", id_=ids(3), body=SENTENCE, kind=KINDS)
BLANK_OUT = step("write", id_=ids(2), body=BLANK, kind=KINDS)
POISON_ONE = step("write", id_=ids(4), body=POISONED, kind=KINDS)
WRITE_MANY = step(
    "write_many", first=st.integers(4, 5) | st.integers(1, 3), body=SENTENCE | BLANK | POISONED
)
CHANGE_KEYS = step("change_keys", id_=ids(6), by=st.integers(8, 9) | st.integers(1, 3))
ENQUEUE = step("enqueue", everything=st.booleans(), limit=st.none() | st.integers(1, 3))
WORK_ONCE = step("work_once", alone=st.booleans())
DRAIN = step("work_until_drained")
BEGIN_NEXT = step("begin_next_generation")
WORK_ON_NEXT = step("work_on_next_generation")
SWITCH = step("switch_generations")

# In this order it is a story in which hardly a step is for nothing.
STEPS = (
    *(WRITE, ENQUEUE, WORK_ONCE, WRITE_MANY, step("capture_changes"), WORK_ONCE, POISON_ONE),
    *(BEGIN_NEXT, BLANK_OUT, step("give_up_next_generation"), DRAIN, CHANGE_KEYS),
    *(BEGIN_NEXT, WRITE, step("delete", id_=ids(1)), WORK_ONCE, SWITCH, WORK_ON_NEXT, DRAIN),
    *(WORK_ON_NEXT, SWITCH, step("retry_dead_letters"), step("truncate"), WRITE_MANY, DRAIN),
    *(step("change_another_column", kind=KINDS), CHANGE_KEYS, step("delete", id_=ids(5))),
    *(step("settle"), step("stop_capturing"), POISON_ONE, step("delete", id_=ids(7))),
    *(ENQUEUE, WORK_ONCE),
)


def write_many(kind: TargetKind, connection: Connection, first: int, body: str | None) -> None:
    """Add five records, but for those that are there."""
    connection.execute(
        "insert into reports (id, body) select id, %s from generate_series(%s::bigint, %s) id"
        f" on conflict ({', '.join(kind.id_fields)}) do nothing",
        (body, first, first + 4),
    )


def begin(connection: Connection, session: Session, *, kind: TargetKind) -> None:
    """Make a pipeline of a kind, with five records that are embedded."""
    pipeline = kind.make(connection)
    write_many(kind, connection, 1, SENTENCES[0])
    embed(connection, session, pipeline, chunker=kind.chunker)


@dataclass
class Pipelines:
    """People who write to a source, and workers that embed it, one step after the other."""

    kind: TargetKind
    connection: Connection
    session: Session

    def __post_init__(self) -> None:
        self._read_pipelines()

    def take(self, name: str, arguments: dict[str, Any]) -> None:
        """Take one step, if it can be taken now."""
        getattr(self, name)(**arguments)
        self._read_pipelines()
        assert_consistent(self.connection, "reports")

    def _read_pipelines(self) -> None:
        pipelines = load_pipelines(self.connection)
        (self.pipeline,) = (each for each in pipelines if each.name == "reports")
        self.successor: Pipeline | None = next(
            (each for each in pipelines if each.successor_of == self.pipeline.id), None
        )

    def write(self, id_: int, body: str | None, kind: str) -> None:
        self.connection.execute(
            "insert into reports (id, body, kind) values (%s, %s, %s)"
            f" on conflict ({', '.join(self.kind.id_fields)})"
            " do update set body = excluded.body, kind = excluded.kind",
            (id_, body, kind),
        )

    def write_many(self, first: int, body: str | None) -> None:
        write_many(self.kind, self.connection, first, body)

    def change_another_column(self, kind: str) -> None:
        self.connection.execute("update reports set kind = %s", (kind,))

    def delete(self, id_: int) -> None:
        self.connection.execute("delete from reports where id = %s", (id_,))

    def truncate(self) -> None:
        # A foreign key refuses it; with cascade, the chunks go along.
        self.connection.execute("truncate reports cascade")

    def change_keys(self, id_: int, by: int) -> None:
        """Move a record to a key that is free, perhaps one that another record had before."""
        self.connection.execute(
            "update reports set id = id + %(by)s where id = %(id)s"
            " and not exists (select from reports where id = %(id)s + %(by)s)",
            {"id": id_, "by": by},
        )

    def enqueue(self, everything: bool, limit: int | None) -> None:
        enqueue(self.connection, self.pipeline, Selection(everything=everything, limit=limit))

    def capture_changes(self) -> None:
        start_capture(self.connection, self.pipeline)
        queue_missed(self.connection, self.pipeline)

    def stop_capturing(self) -> None:
        stop_capture(self.connection, self.pipeline)

    def work_once(self, alone: bool) -> None:
        work_once(self.session, self.pipeline, chunker=self.kind.chunker, alone=alone)

    def work_until_drained(self) -> None:
        drain(self.session, self.pipeline, chunker=self.kind.chunker)

    def retry_dead_letters(self) -> None:
        retry(self.connection, self.pipeline)

    def begin_next_generation(self) -> None:
        if self.successor is not None:
            return
        pipeline = self.pipeline
        other = "halfvec" if pipeline.spec.vector_type == "vector" else "vector"
        successor = alter(self.connection, pipeline, Changes(vector_type=other))
        assert successor is not None
        catch_up(self.connection, pipeline, successor)

    def work_on_next_generation(self) -> None:
        if self.successor is not None:
            drain(self.session, self.successor, chunker=self.kind.chunker)

    def switch_generations(self) -> None:
        if self.successor is not None:
            self._try_to_switch()

    def give_up_next_generation(self) -> None:
        if self.successor is not None:
            abort(self.connection, self.pipeline)

    def _try_to_switch(self) -> None:
        with suppress(NotComplete):
            switch(self.connection, self.pipeline, force=True)
        self._read_pipelines()

    def settle(self) -> None:
        """Work on both generations until the next one replaces the old, and ask the oracle."""
        if not capture.is_on(self.connection, self.pipeline):
            enqueue(self.connection, self.pipeline, Selection())
        while self.successor is not None:
            self.work_until_drained()
            self.work_on_next_generation()
            self._try_to_switch()
        self.work_until_drained()
        assert_true(self.connection, self.pipeline)


@pytest.mark.usefixtures("fake_next_model", "quick_switch")
@pytest.mark.parametrize("kind", TARGET_KINDS, ids=lambda kind: kind.name)
def test_promise_is_kept_in_any_order_of_steps(
    kind: TargetKind, make_database: Callable[[Fill], Iterator[str]]
) -> None:
    begun = filled_by(partial(begin, kind=kind))

    @settings(
        # The order in which they stand, and another one.
        max_examples=2,
        deadline=None,
        # A database that is made and dropped cannot be shrunk quickly.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(steps=st.permutations(STEPS).flatmap(lambda order: st.tuples(*order)))
    def take(steps: tuple[Step, ...]) -> None:
        with (
            contextmanager(make_database)(begun) as conninfo,
            connect(conninfo) as connection,
            open_session(conninfo) as session,
        ):
            connection.execute("reset search_path")
            pipelines = Pipelines(kind, connection, session)
            for name, arguments in steps:
                pipelines.take(name, arguments)
            pipelines.settle()

    take()
