"""Documents of several columns or a template, and conditions that say which rows are records."""

from __future__ import annotations

import pytest

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.source.read import read_records
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, tokenizer
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, work_once


def make_articles(connection: Connection, *rows: tuple[str | None, str | None]) -> None:
    connection.execute("create table reports (id bigint primary key, title text, body text)")
    for number, row in enumerate(rows, start=1):
        connection.execute("insert into reports values (%s, %s, %s)", (number, *row))


def documents(connection: Connection, pipeline: Pipeline) -> list[str | None]:
    keys = [str(number) for number in range(1, 20)]
    records = read_records(connection, pipeline, keys, [False] * 19, limit_bytes=1 << 20)
    return [record.document for record in records]


class TestFields:
    """Several columns, joined by a blank line."""

    def test_null_and_empty_columns_leave_no_blank_line(self, connection: Connection) -> None:
        make_articles(connection, ("t", "b"), (None, "b"), ("t", None), ("", "b"), (None, None))
        pipeline = make_pipeline(connection, text_fields=("title", "body"))
        assert documents(connection, pipeline) == ["t\n\nb", "b", "t", "b", ""]

    def test_change_of_any_column_is_seen(self, connection: Connection, session: Session) -> None:
        make_articles(connection, ("first", "text"), ("second", "text"))
        pipeline = make_pipeline(connection, text_fields=("title", "body"))
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        connection.execute("update reports set title = 'third' where id = 2")
        assert enqueue(connection, pipeline, Selection()) == 1
        drain(session, pipeline)
        assert_converged(connection, "reports")


class TestTemplates:
    """Templates over any columns."""

    def test_fields_are_filled_in(self, connection: Connection) -> None:
        make_articles(connection, ("Pump", "It stopped. 100 %s {x}"), ("Valve", None))
        pipeline = make_pipeline(connection, template="50 % 'off' $$ $title:\\n$body {0} %s")
        assert documents(connection, pipeline) == [
            "50 % 'off' $ Pump:\nIt stopped. 100 %s {x} {0} %s",
            "50 % 'off' $ Valve:\n {0} %s",
        ]
        assert (
            str(load_pipeline(connection, "reports").document) == pipeline.document.recipe.template
        )

    def test_record_without_any_text_is_empty_for_all_the_templates_own(
        self, connection: Connection, session: Session
    ) -> None:
        make_articles(connection, (None, None), ("", " \n"), ("Pump", None))
        pipeline = make_pipeline(connection, template="$title: $body")
        assert documents(connection, pipeline) == ["", "", "Pump: "]
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        states = connection.execute("select state from pgembed.records order by key")
        assert [state for (state,) in states] == ["empty", "empty", "embedded"]
        assert_converged(connection, "reports")

    def test_settings_of_the_session_change_no_text(self, connection: Connection) -> None:
        connection.execute("create type mood as enum ('good', 'it''s bad')")
        connection.execute(
            "create table reports (id int primary key, day date, at timestamptz, plain timestamp,"
            " tags text[], feeling mood, price numeric, ok boolean, extra jsonb, clock time)"
        )
        connection.execute(
            "insert into reports values (1, '2024-02-29', '2024-03-31 01:30:00.5+02',"
            " '2024-03-31 23:59', '{a,\"b c\"}', 'it''s bad', 1.50, true, '{\"a\": [1]}', '04:05')"
        )
        template = "$day|$at|$plain|$tags|$feeling|$price|$ok|$extra|$clock"
        pipeline = make_pipeline(connection, template=template)
        expected = (
            "2024-02-29|2024-03-30T23:30:00.5|2024-03-31T23:59:00|a, b c|it's bad|1.50|true"
            '|{"a": [1]}|04:05:00'
        )
        for settings in ("ISO, DMY", "German", "SQL, MDY", "Postgres"):
            connection.execute(f"set datestyle = '{settings}'; set timezone = 'America/Lima'")
            assert documents(connection, pipeline) == [expected]

    @pytest.mark.on_both_servers
    def test_two_hundred_columns(self, connection: Connection, session: Session) -> None:
        names = [f"c{number}" for number in range(200)]
        columns = ", ".join(f"{name} text" for name in names)
        connection.execute(f"create table reports (id int primary key, {columns})")
        connection.execute("insert into reports (id, c0, c199) values (1, 'first', 'last')")
        fields = make_pipeline(connection, text_fields=tuple(names))
        assert documents(connection, fields) == ["first\n\nlast"]
        template = make_pipeline(
            connection,
            name="template",
            target=Table(schema="public", name="others"),
            template="/".join(f"${name}" for name in names),
        )
        assert documents(connection, template) == ["first" + "/" * 199 + "last"]
        for pipeline in (fields, template):
            enqueue(connection, pipeline, Selection())
            drain(session, pipeline)
        assert_converged(connection, "reports")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("$title $nothing", "public.reports has no column 'nothing'; it has id, title, body"),
            ("no columns", "names no column"),
            ("$title costs $5", "write .*for a dollar"),
            ("$waited", "type interval, whose text depends on a session's settings; make a view"),
            ("$raw", "type bytea"),
            ("$price", "type money"),
        ],
    )
    def test_bad_template_is_refused_in_one_line(
        self, connection: Connection, text: str, reason: str
    ) -> None:
        make_articles(connection)
        if not reason.startswith("public"):
            connection.execute(
                "alter table reports add waited interval, add raw bytea, add price money"
            )
        with pytest.raises(UsageError, match=reason) as refusal:
            make_pipeline(connection, template=text)
        assert "\n" not in str(refusal.value)

    def test_lost_column_of_a_template_faults_the_pipeline(
        self, connection: Connection, session: Session
    ) -> None:
        make_articles(connection, ("t", "b"))
        pipeline = make_pipeline(connection, template="$title: $body")
        enqueue(connection, pipeline, Selection())
        connection.execute("alter table reports drop column title")
        with pytest.raises(PipelineFault, match=r"column source\.title does not exist"):
            work_once(session, pipeline)


class TestWhere:
    """The condition of a pipeline."""

    def test_only_matching_rows_are_records(self, connection: Connection, session: Session) -> None:
        make_source(connection, texts(10))
        pipeline = make_pipeline(connection, where="body like '%Report%' and id % 2 = 0")
        assert enqueue(connection, pipeline, Selection()) == 5
        assert enqueue(connection, pipeline, Selection(where="id > 4", everything=True)) == 0
        drain(session, pipeline)
        assert enqueue(connection, pipeline, Selection(where="id > 4", everything=True)) == 3
        drain(session, pipeline)
        assert load_pipeline(connection, "reports").spec.where == pipeline.spec.where
        assert_converged(connection, "reports")

    @pytest.mark.on_both_servers
    def test_row_that_stops_matching_loses_its_vectors(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(6))
        connection.execute("alter table reports add hidden boolean not null default false")
        pipeline = make_pipeline(connection, where="not hidden")
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        connection.execute("update reports set hidden = id < 3")
        assert enqueue(connection, pipeline, Selection()) == 2
        drain(session, pipeline)
        assert_converged(connection, "reports")
        connection.execute("update reports set hidden = false")
        assert enqueue(connection, pipeline, Selection()) == 2
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_row_that_stops_matching_while_the_model_runs_is_not_written(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(3))
        pipeline = make_pipeline(connection, where="id <> 0 and body not like 'gone%'")
        enqueue(connection, pipeline, Selection())
        hide = "update reports set body = 'gone ' || body where id = 2"
        device = FakeDevice(during=lambda: connection.execute(hide))
        work_once(session, pipeline, device)
        drain(session, pipeline)
        assert_converged(connection, "reports")

    def test_columns_may_be_called_like_those_of_our_own_statements(
        self, connection: Connection, session: Session
    ) -> None:
        connection.execute(
            "create table reports"
            " (id int primary key, body text, key int, position int, state text)"
        )
        connection.execute(
            "insert into reports select n, n || ' x', n, n, '' from generate_series(1, 8) n"
        )
        pipeline = make_pipeline(
            connection, where="key > 2 and position < 7 and state = '' -- and false"
        )
        assert enqueue(connection, pipeline, Selection(where="key <> 4 -- )")) == 3
        drain(session, pipeline)
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        assert_converged(connection, "reports")

    @pytest.mark.parametrize(
        "where", ["nothing = 1", "id", "true) or (true", "id = 1; drop table reports", "(", "--"]
    )
    def test_what_is_no_condition_is_refused_in_one_line(
        self, connection: Connection, where: str
    ) -> None:
        make_source(connection)
        with pytest.raises(UsageError, match=r"--where is not a condition over public") as refusal:
            make_pipeline(connection, where=where)
        assert "\n" not in str(refusal.value)

    def test_condition_that_fails_on_a_record_faults_the_pipeline(
        self, connection: Connection, session: Session
    ) -> None:
        make_source(connection, texts(3))
        pipeline = make_pipeline(connection, where="10 / length(body) >= 0")
        enqueue(connection, pipeline, Selection())
        connection.execute("update reports set body = '' where id = 2")
        with pytest.raises(PipelineFault, match="division by zero"):
            enqueue(connection, pipeline, Selection())
        with pytest.raises(PipelineFault, match="division by zero"):
            wait_until(lambda: work_once(session, pipeline) is None, "the queue is empty")


class TestChunkTemplates:
    """What the model reads around a chunk, and nobody stores."""

    TEMPLATE = "<$title>: $chunk"

    def test_context_is_embedded_and_not_stored(
        self, connection: Connection, session: Session
    ) -> None:
        make_articles(connection, ("Pump", "It stopped."), (None, "50 % off"), ("Valve", None))
        pipeline = make_pipeline(connection, chunk_template=self.TEMPLATE)
        enqueue(connection, pipeline, Selection())
        device = FakeDevice()
        drain(session, pipeline, device)
        assert sorted(device.embedded_texts) == ["<>: 50 % off", "<Pump>: It stopped."]
        stored = connection.execute("select text_chunk from reports_chunks order by fulltext_id")
        assert stored.fetchall() == [("It stopped.",), ("50 % off",)]
        assert load_pipeline(connection, "reports") == pipeline
        assert_converged(connection, "reports")

    def test_nothing_moves_between_text_and_context_unseen(self, connection: Connection) -> None:
        make_articles(connection, ("a", "b"), ("a,b", ""), ("", "ab"), (None, "ab"), ("ab", None))
        pipeline = make_pipeline(connection, chunk_template="$title$chunk$title")
        keys = ["1", "2", "3", "4", "5"]
        records = read_records(connection, pipeline, keys, [False] * 5, limit_bytes=100)
        first, second, third, fourth, fifth = (record.document_hash for record in records)
        assert third == fourth
        assert len({first, second, third, fifth}) == 4

    def test_context_without_room_for_text_is_a_dead_letter_at_once(
        self, connection: Connection, session: Session
    ) -> None:
        make_articles(connection, ("word " * 13, "It stopped."), ("Pump", "It stopped."))
        pipeline = make_pipeline(connection, chunk_template=self.TEMPLATE)
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        letters = connection.execute("select key, attempts, last_error from pgembed.dead_letters")
        ((key, attempts, error),) = letters.fetchall()
        assert (key, attempts) == ("1", 1)
        assert "the chunk template has" in error
        assert_converged(connection, "reports")


class TestWholeDocuments:
    """Chunking none."""

    def test_document_is_one_chunk_or_a_dead_letter_at_once(
        self, connection: Connection, session: Session
    ) -> None:
        make_articles(connection, (None, "One. Two.\n\nThree."), (None, "word " * 17), (None, ""))
        pipeline = make_pipeline(connection, chunking="none")
        enqueue(connection, pipeline, Selection())
        chunker = Chunker(tokenizer(), max_tokens=16, overlap_tokens=0, whole=True)
        drain(session, pipeline, chunker=chunker)
        stored = connection.execute("select fulltext_id, text_chunk from reports_chunks")
        assert stored.fetchall() == [(1, "One. Two.\n\nThree.")]
        letters = connection.execute("select key, attempts, last_error from pgembed.dead_letters")
        ((key, attempts, error),) = letters.fetchall()
        assert (key, attempts) == ("2", 1)
        assert "the document has 17 tokens, more than the 16" in error
        assert_converged(connection, "reports")
