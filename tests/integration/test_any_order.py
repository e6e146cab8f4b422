"""Whatever people and workers do, in whatever order, the promise is kept for every kind of target.

A state machine: its steps are statements of users and turns of workers, and at its end the oracle
is asked. Tests that tell one story each stand in the files of what they are about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.completeness import NotComplete
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import queue_missed, start_capture, stop_capture
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.generations import successor_of
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

IDS = st.integers(min_value=1, max_value=8)
TEXTS = st.one_of(
    st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4).map(" ".join),
    st.sampled_from([None, "", " \n", f"a text with {POISON} in it"]),
)
KINDS = st.sampled_from(["injury", "malfunction", "other"])


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


class Pipelines(RuleBasedStateMachine):
    """People who write to a source, and workers that embed it, one step after the other."""

    def __init__(self, kind: TargetKind, database: Callable[[], Iterator[str]]) -> None:
        super().__init__()
        self.kind = kind
        self.closing = ExitStack()
        conninfo = self.closing.enter_context(contextmanager(database)())
        self.connection = self.closing.enter_context(connect(conninfo))
        self.connection.execute("reset search_path")
        self.session = self.closing.enter_context(open_session(conninfo))

    @property
    def pipeline(self) -> Pipeline:
        return load_pipeline(self.connection, "reports")

    @property
    def successor(self) -> Pipeline | None:
        return successor_of(self.connection, self.pipeline)

    @rule(id_=IDS, body=TEXTS, kind=KINDS)
    def write(self, id_: int, body: str | None, kind: str) -> None:
        self.connection.execute(
            "insert into reports (id, body, kind) values (%s, %s, %s)"
            f" on conflict ({', '.join(self.kind.id_fields)})"
            " do update set body = excluded.body, kind = excluded.kind",
            (id_, body, kind),
        )

    @rule(first=st.integers(1, 5), body=TEXTS)
    def write_many(self, first: int, body: str | None) -> None:
        write_many(self.kind, self.connection, first, body)

    @rule(kind=KINDS)
    def change_another_column(self, kind: str) -> None:
        self.connection.execute("update reports set kind = %s", (kind,))

    @rule(id_=IDS)
    def delete(self, id_: int) -> None:
        self.connection.execute("delete from reports where id = %s", (id_,))

    @rule()
    def truncate(self) -> None:
        # A foreign key refuses it; with cascade, the chunks go along.
        self.connection.execute("truncate reports cascade")

    @rule(id_=IDS, by=st.integers(1, 3))
    def change_keys(self, id_: int, by: int) -> None:
        """Move a record to a key that is free, perhaps one that another record had before."""
        self.connection.execute(
            "update reports set id = id + %(by)s where id = %(id)s"
            " and not exists (select from reports where id = %(id)s + %(by)s)",
            {"id": id_, "by": by},
        )

    @rule(everything=st.booleans(), limit=st.one_of(st.none(), st.integers(1, 3)))
    def enqueue(self, everything: bool, limit: int | None) -> None:
        enqueue(self.connection, self.pipeline, Selection(everything=everything, limit=limit))

    @rule()
    def capture_changes(self) -> None:
        start_capture(self.connection, self.pipeline)
        queue_missed(self.connection, self.pipeline)

    @rule()
    def stop_capturing(self) -> None:
        stop_capture(self.connection, self.pipeline)

    @rule(alone=st.booleans())
    def work_once(self, alone: bool) -> None:
        work_once(self.session, self.pipeline, chunker=self.kind.chunker, alone=alone)

    @rule()
    def work_until_drained(self) -> None:
        drain(self.session, self.pipeline, chunker=self.kind.chunker)

    @rule()
    def retry_dead_letters(self) -> None:
        retry(self.connection, self.pipeline)

    @precondition(lambda self: self.successor is None)
    @rule()
    def begin_next_generation(self) -> None:
        pipeline = self.pipeline
        other = "halfvec" if pipeline.spec.vector_type == "vector" else "vector"
        successor = alter(self.connection, pipeline, Changes(vector_type=other))
        assert successor is not None
        catch_up(self.connection, pipeline, successor)

    @precondition(lambda self: self.successor is not None)
    @rule()
    def work_on_next_generation(self) -> None:
        assert self.successor is not None
        drain(self.session, self.successor, chunker=self.kind.chunker)

    @precondition(lambda self: self.successor is not None)
    @rule()
    def switch_generations(self) -> None:
        with suppress(NotComplete):
            switch(self.connection, self.pipeline, force=True)

    @precondition(lambda self: self.successor is not None)
    @rule()
    def give_up_next_generation(self) -> None:
        abort(self.connection, self.pipeline)

    @invariant()
    def everything_stored_is_whole(self) -> None:
        assert_consistent(self.connection, "reports")

    def teardown(self) -> None:
        with self.closing:
            if not capture.is_on(self.connection, self.pipeline):
                enqueue(self.connection, self.pipeline, Selection())
            self._finish_generations()
            drain(self.session, self.pipeline, chunker=self.kind.chunker)
            assert_true(self.connection, self.pipeline)

    def _finish_generations(self) -> None:
        """Work on both generations until the next one takes over."""
        while (successor := self.successor) is not None:
            drain(self.session, self.pipeline, chunker=self.kind.chunker)
            drain(self.session, successor, chunker=self.kind.chunker)
            with suppress(NotComplete):
                switch(self.connection, self.pipeline, force=True)


@pytest.mark.usefixtures("fake_next_model", "quick_switch")
@pytest.mark.parametrize("kind", TARGET_KINDS, ids=lambda kind: kind.name)
def test_promise_is_kept_in_any_order_of_steps(
    kind: TargetKind, make_database: Callable[[Fill], Iterator[str]]
) -> None:
    begun = filled_by(partial(begin, kind=kind))
    run_state_machine_as_test(
        lambda: Pipelines(kind, lambda: make_database(begun)),  # type: ignore[arg-type]  # makes one
        settings=settings(
            max_examples=4,
            stateful_step_count=20,
            deadline=None,
            # A database that is made and dropped cannot be shrunk quickly.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
