"""One story, told to each kind of target: what is promised of one is promised of all.

`test_any_order` tells it in any order; what only one kind can do is told where that kind is.
"""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.fakes import POISON
from tests.support.rows import one_value
from tests.support.target_kinds import TARGET_KINDS, TargetKind, assert_true
from tests.support.working import drain

TEXTS = (
    *("The pump stopped. " * 9, "An alarm was heard.", "Nobody was hurt.", "A valve was open."),
    *("A tube was bent.", None, "", f"This is {POISON}."),
)


class Story:
    """A pipeline, and what has happened to its records."""

    def __init__(self, kind: TargetKind, connection: Connection, session: Session) -> None:
        self.kind, self.connection, self.session = kind, connection, session
        self.pipeline: Pipeline = kind.make(connection)
        for number, text in enumerate(TEXTS, 1):
            insert = "insert into reports (id, body) values (%s, %s)"
            connection.execute(insert, (number, text))

    def embed(self, statement: str = "", *, everything: bool = False) -> int:
        """Embed what `statement` has changed; returns how many records were queued for it."""
        if statement:
            self.connection.execute(statement)
        selection = Selection(everything=everything)
        queued = enqueue(self.connection, self.pipeline, selection, allow_deletes=True)
        drain(self.session, self.pipeline, chunker=self.kind.chunker)
        assert_true(self.connection, self.pipeline)
        assert self.ids_with_vectors() == self.ids_with_text()
        assert enqueue(self.connection, self.pipeline, Selection()) == 0, statement
        return queued

    def ids_with_text(self) -> set[int]:
        """Return the ids of the records that are to have vectors."""
        rows = self.connection.execute("select id, coalesce(body, ''), kind from reports")
        return {
            id_
            for id_, body, kind in rows
            if (body.strip() or self.pipeline.spec.template is not None)
            and POISON not in body
            and (kind != "other" or self.pipeline.spec.where is None)
        }

    def ids_with_vectors(self) -> set[int]:
        query = self.kind.ids_with_vectors(self.pipeline)
        return {int(id_) for (id_,) in self.connection.execute(query)}

    def dead_letters(self) -> int:
        return int(one_value(self.connection, "select count(*) from pgembed.dead_letters"))


@pytest.mark.parametrize("kind", TARGET_KINDS, ids=lambda kind: kind.name)
def test_promise_is_kept_through_all_that_happens_to_records(
    kind: TargetKind, connection: Connection, session: Session
) -> None:
    story = Story(kind, connection, session)

    assert story.embed() == len(TEXTS)
    assert story.ids_with_vectors() >= {1, 2, 3, 4, 5}
    assert story.dead_letters() == 1

    # A text that changes, and a column that is read along, copied, or in the condition.
    assert story.embed("update reports set body = 'It went on.' where id = 1") == 1
    queued = story.embed("update reports set kind = 'malfunction' where id = 2")
    assert queued == (1 if kind.depends_on_kind else 0)
    story.embed("update reports set kind = 'other' where id = 2")
    story.embed("update reports set kind = 'injury' where id = 2")

    # A text that is lost, a record that is deleted, comes back, and is called otherwise.
    assert story.embed("update reports set body = ' ' where id = 3") == 1
    story.embed("delete from reports where id = 4")
    assert story.embed("insert into reports (id, body) values (4, 'A valve was open.')") == 1
    connection.execute("delete from reports where id = 4")
    story.embed("insert into reports (id, body) values (4, 'A valve was open.')")
    story.embed("update reports set id = 50 where id = 5")

    # Vectors that somebody has removed, a dead letter that is tried again and one that is mended.
    connection.execute(kind.removal(story.pipeline), {"id": 1})
    assert 1 not in story.ids_with_vectors()
    story.embed(everything=True)
    assert retry(connection, story.pipeline) == 1
    drain(session, story.pipeline, chunker=kind.chunker)
    assert story.dead_letters() == 1
    assert story.embed("update reports set body = 'Mended.' where id = 8") == 1
    assert story.dead_letters() == 0

    story.embed("truncate reports cascade")
    assert one_value(connection, "select count(*) from pgembed.records") == 0
