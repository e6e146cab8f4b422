"""A switch at any moment: writers, claims of both generations inside of each other, a backlog.

Hypothesis picks who does what when; what a claim's model "does meanwhile" is more of the same, so
that every step can fall between the read and the write of any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db import locks
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import LeaseLost, UsageError
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.completeness import NotComplete
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import delete_records, make_source, set_text, texts
from tests.support.fakes import FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, prepare_with_fake_model
from tests.support.working import drain, open_session, work_once

KEYS = st.integers(1, 4)
TEXTS = st.sampled_from([*texts(4), "", None])
NUMBER = itertools.count()

Step = tuple[Any, ...]

WRITES = st.one_of(
    st.tuples(st.just("write"), KEYS, TEXTS),
    st.tuples(st.just("delete"), KEYS),
)
ENQUEUE = st.just(("enqueue",))
CLAIM: st.SearchStrategy[Any] = st.tuples(st.sampled_from(["old", "new"]), st.just([]))

# The old generation settles what there is.
WORK: list[Step] = [("old", [])] * 3

# How far the new generation is: nothing is queued for it yet, something is, or both are done.
BEGUN = st.sampled_from(["made", "queued", "embedded"])


def _while(names: list[str], inner: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    """Something that takes its time, and what happens meanwhile."""
    return st.tuples(st.sampled_from(names), st.lists(inner, max_size=3))


def _steps(simple: st.SearchStrategy[Step], most: int) -> st.SearchStrategy[list[Step]]:
    """Claims inside of claims, and of a switch that has looked and is not done yet."""
    claims = _while(["old", "new"], simple)
    nested = _while(["old", "new", "switch"], st.one_of(simple, claims))
    return st.lists(st.one_of(simple, nested), max_size=most)


# Shrinking takes long with a database, and the steps are few.
MOMENTS = settings(
    max_examples=20,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nobody: whoever is waited for is further up in the same thread."""
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _pipeline: None)
    monkeypatch.setattr(locks, "TRIES", 1)
    monkeypatch.setattr(switching, "CLAIM_SECONDS", 0.02)
    monkeypatch.setattr(switching, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(switching, "STALL_SECONDS", 0.0)


@pytest.fixture
def sessions(conninfo: str) -> Iterator[list[Session]]:
    """A session for each depth: a claim and those inside of it are on different ones."""
    with (
        open_session(conninfo) as one,
        open_session(conninfo) as two,
        open_session(conninfo) as three,
    ):
        yield [one, two, three]


@dataclass
class Moment:
    """The two generations, and whoever is about to do something to them."""

    connection: Connection
    free: list[Session]
    old: Pipeline
    new: Pipeline
    switched: bool = False
    done: list[str] = field(default_factory=list)

    def take(self, steps: list[Step]) -> None:
        for name, *arguments in steps:
            self.done.append(name)
            getattr(self, f"_{name}")(*arguments)

    def _write(self, key: int, text: str | None) -> None:
        set_text(self.connection, self.old.source, key, text)

    def _delete(self, key: int) -> None:
        delete_records(self.connection, self.old.source, [key])

    def _enqueue(self) -> None:
        enqueue(self.connection, load_pipeline(self.connection, self.old.name), Selection())

    def _old(self, meanwhile: list[Step]) -> None:
        self._claim(self.old, meanwhile)

    def _new(self, meanwhile: list[Step]) -> None:
        self._claim(self.new, meanwhile)

    def _claim(self, pipeline: Pipeline, meanwhile: list[Step]) -> None:
        session = self.free.pop()
        device = FakeDevice(during=lambda: self.take(meanwhile))
        size = ClaimSize(items=2, limit_bytes=1 << 20)
        chunker = fake_chunker(pipeline.spec.chunk_tokens, pipeline.spec.overlap_tokens)
        # A claim that the switch has overtaken, or one of a worker that has yet to hear of it.
        with suppress(LeaseLost):
            work_once(session, pipeline, device, size=size, chunker=chunker)
        self.free.append(session)

    def _switch(self, meanwhile: list[Step]) -> None:
        before: set[tuple[str, str | None]] = set()

        def go_on(step: str) -> None:
            if step.startswith("building"):
                self.take(meanwhile)
            before.clear()
            before.update(seen(self.connection, self.old))

        if self.switched:
            return
        try:
            self.new = switch(self.connection, self.old, on_step=go_on)
        except NotComplete:
            return
        except UsageError as error:
            if "used without a pause" not in str(error):
                raise
            return
        self.switched = True
        missing = before - seen(self.connection, self.new)
        assert not missing, f"searches do not find any more what they found: {missing}"

    def finish(self) -> None:
        """Let the new generation work until the switch is done, and until nothing is left."""
        while not self.switched:
            self.embed()
            self._switch([])
        self.embed()

    def embed(self) -> None:
        """Let the new generation work off what waits for it."""
        drain(self.free[0], self.new, chunker=fake_chunker(8, 0))


SEEN = """
select key, case when document_hash = sha256(convert_to(coalesce(body, ''), 'UTF8')) then 'now' end
from pgembed.records
join {source} as source on source.id::text = key
where pipeline_id = %s and state is not null
"""


def seen(connection: Connection, pipeline: Pipeline) -> set[tuple[str, str | None]]:
    """Return which records the pipeline has settled, and with the text that they have now."""
    query = SEEN.format(source=pipeline.source.quoted)
    rows = connection.execute(query, (pipeline.id,)).fetchall()
    return {(key, None) for key, _ in rows} | set(rows)


def begin(connection: Connection, sessions: list[Session], *, capture: bool, begun: str) -> Moment:
    """Two generations: some records are embedded in the old one, some wait for it."""
    name = f"reports_{next(NUMBER)}"
    source = make_source(connection, texts(1), table=name)
    old = make_pipeline(connection, source, name=name)
    if capture:
        start_capture(connection, old)
    enqueue(connection, old, Selection())
    drain(sessions[0], old)
    for key in (2, 3):
        set_text(connection, source, key, texts(key)[-1])
    if not capture:
        enqueue(connection, old, Selection())
    new = alter(connection, old, Changes(chunk_tokens=8, overlap_tokens=0))
    assert new is not None
    moment = Moment(connection, list(sessions), old, new)
    if begun == "embedded":
        drain(sessions[0], old)
    if begun != "made":
        catch_up(connection, old, new)
    if begun == "embedded":
        moment.embed()
    return moment


def end(moment: Moment) -> None:
    try:
        moment.finish()
        assert_converged(moment.connection, moment.old.name)
    finally:
        for each in load_pipelines(moment.connection):
            if each.successor_of is None or moment.switched:
                drop_pipeline(moment.connection, each, delete_vectors=True)


# What the next generation knows changes, and the old one has it, once the switch has looked.
@example(steps=[("switch", [("write", 1, "Changed."), *WORK])], begun="embedded")
# A record that only the old one knows waits for the next one as a change.
@example(steps=[("write", 1, "Changed."), ("switch", [])], begun="made")
@MOMENTS
@pytest.mark.timeout(600)
@given(steps=_steps(st.one_of(WRITES, ENQUEUE), 10), begun=BEGUN)
def test_switch_at_any_moment_loses_nothing_with_capture_on(
    connection: Connection, sessions: list[Session], steps: list[Step], begun: str
) -> None:
    """Nothing is enqueued after the switch: what the writer did is in the queue, or done."""
    moment = begin(connection, sessions, capture=True, begun=begun)
    moment.take(steps)
    end(moment)


@example(
    steps=[("switch", [("write", 1, "Changed."), ("enqueue",), *WORK])],
    quiet=[],
    begun="embedded",
)
@MOMENTS
@pytest.mark.timeout(600)
@given(
    steps=_steps(st.one_of(WRITES, ENQUEUE), 8),
    quiet=_steps(CLAIM, 4),
    begun=BEGUN,
)
def test_switch_at_any_moment_loses_nothing_that_was_enqueued_before(
    connection: Connection,
    sessions: list[Session],
    steps: list[Step],
    quiet: list[Step],
    begun: str,
) -> None:
    """Without capture, the last enqueue comes after the last change, and before what is left."""
    moment = begin(connection, sessions, capture=False, begun=begun)
    moment.take(steps)
    moment.take([("enqueue",)])
    moment.take(quiet)
    end(moment)
