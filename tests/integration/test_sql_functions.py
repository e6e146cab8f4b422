"""The functions for psql: what they do, what they refuse, and who may call them."""

from __future__ import annotations

import random
import threading
from itertools import pairwise, product

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.key import KEY_TYPES
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import KEY_OF_NUMBER, delete_records, make_source, set_text, texts
from tests.support.fakes import POISON, FakeDevice
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.prepared import filled_by
from tests.support.spelling import session_beside_odd_settings
from tests.support.working import drain, embed_documents, open_session, work_once

# A page of the ledger's index takes three keys: these bytes are the longest, if not compressible.
LONGEST_KEY = 2684


def make_reports(connection: Connection, session: Session) -> None:
    documents = [*texts(7), POISON, f"{POISON} too"]
    embed_documents(connection, session, documents, max_attempts=1)


PREPARED = {"reports": filled_by(make_reports)}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A finished pipeline with the records 1 to 9, of which 8 and 9 are dead letters."""
    return load_pipeline(connection, "reports")


def call(connection: Connection, function: str, *arguments: object) -> int:
    """Return what the function says; arguments are SQL, or values if they are no strings."""
    listed = ", ".join(map(str, arguments))
    (answer,) = connection.execute(f"select pgembed.{function}({listed})").fetchone() or (None,)
    assert isinstance(answer, int)
    return answer


def queued_keys(connection: Connection) -> list[str]:
    rows = connection.execute("select unnest(keys) from pgembed.work order by 1")
    return [key for (key,) in rows]


def refusal(connection: Connection, statement: str) -> str:
    """Return message and hint of what `statement` is refused with."""
    with pytest.raises(psycopg.Error) as refused:
        connection.execute(statement)
    return f"{refused.value.diag.message_primary}; {refused.value.diag.message_hint}"


def keyed_by(connection: Connection, key_type: str) -> Pipeline:
    return make_pipeline(connection, make_source(connection, texts(3), key_type=key_type))


class TestEnqueue:
    """pgembed.enqueue: keys of any spelling, once each."""

    @pytest.mark.on_both_servers
    @pytest.mark.parametrize(
        "keys", ["'{3,4}'", "array['3', '4']", "array[3, 4]", "array(select id from few)"]
    )
    def test_keys_are_given_as_an_array_of_any_kind(
        self, connection: Connection, reports: Pipeline, keys: str
    ) -> None:
        connection.execute("create table few as select unnest(array[3, 4]::bigint[]) as id")
        assert call(connection, "enqueue", "'reports'", keys) == 2
        assert queued_keys(connection) == ["3", "4"]

    def test_changed_new_unchanged_and_gone_records_are_all_put_right(
        self, conninfo: str, connection: Connection, reports: Pipeline
    ) -> None:
        set_text(connection, REPORTS, 1, "Changed.")
        set_text(connection, REPORTS, 10, "New.")
        delete_records(connection, REPORTS, [2])
        assert call(connection, "enqueue", "'reports'", "array[1, 2, 3, 10]") == 4
        device = FakeDevice()
        with open_session(conninfo) as session:
            drain(session, reports, device)
        assert sorted(device.embedded_texts) == ["Changed.", "New."]
        assert_converged(connection, "reports")

    def test_progress_counts_each_record_once(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        call(connection, "enqueue", "'reports'", "array[1, 1, 10]")
        row = connection.execute("select total, pending from pgembed.progress").fetchone()
        assert row == (10, 2)

    def test_what_waits_is_not_queued_twice(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        assert call(connection, "enqueue", "'reports'", "array[1, 2]") == 2
        assert call(connection, "enqueue", "'reports'", "array[2, 3]") == 1
        assert queued_keys(connection) == ["1", "2", "3"]

    def test_deletion_is_told_of_a_record_that_waits_for_a_scan(
        self, connection: Connection, session: Session, reports: Pipeline
    ) -> None:
        enqueue(connection, reports, Selection(everything=True))
        delete_records(connection, REPORTS, [2])
        assert call(connection, "enqueue", "'reports'", "array[2]") == 1
        assert call(connection, "enqueue", "'reports'", "array[2]") == 0
        drain(session, reports)
        assert_converged(connection, "reports")

    def test_what_a_worker_holds_is_queued_again(
        self, conninfo: str, connection: Connection, reports: Pipeline
    ) -> None:
        set_text(connection, REPORTS, 1, "Old.")
        call(connection, "enqueue", "'reports'", "array[1]")

        def change() -> None:
            set_text(connection, REPORTS, 1, "New.")
            assert call(connection, "enqueue", "'reports'", "array[1]") == 1

        with open_session(conninfo) as session:
            assert work_once(session, reports, FakeDevice(during=change))
            drain(session, reports)
        assert_converged(connection, "reports")

    def test_new_record_that_a_worker_holds_counts_once_and_its_deletion_is_told(
        self, conninfo: str, connection: Connection, reports: Pipeline
    ) -> None:
        """It will have vectors once the worker is done, and no scan tells that they must go."""
        connection.execute("insert into reports (id, body) values (10, 'New.')")
        call(connection, "enqueue", "'reports'", "array[10]")

        seen: list[object] = []

        def delete() -> None:
            seen.append(enqueue(connection, reports, Selection()))
            delete_records(connection, REPORTS, [10])
            seen.append(call(connection, "enqueue", "'reports'", "array[10]"))
            progress = "select total, pending from pgembed.progress"
            seen.append(connection.execute(progress).fetchone())

        with open_session(conninfo) as session:
            assert work_once(session, reports, FakeDevice(during=delete))
            assert seen == [1, 1, (10, 3)]
            drain(session, reports)
        assert_converged(connection, "reports")

    @pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
    def test_what_waits_may_be_claimed_before_the_change_is_committed(
        self, conninfo: str, connection: Connection, reports: Pipeline, isolation: str
    ) -> None:
        """The item that waits does not do: a worker takes it, and sees the text from before."""
        call(connection, "enqueue", "'reports'", "array[1]")
        with connect(conninfo) as user, open_session(conninfo) as session:
            with user.transaction():
                user.execute(f"set transaction isolation level {isolation}")
                set_text(user, REPORTS, 1, "Changed in a long transaction.")
                assert call(user, "enqueue", "'reports'", "array[1]") == 1
                assert call(user, "enqueue", "'reports'", "array[1]") == 0
                assert work_once(session, reports)
            drain(session, reports)
        assert_converged(connection, "reports")

    def test_an_old_snapshot_does_not_see_what_was_claimed_since(
        self, conninfo: str, connection: Connection, reports: Pipeline
    ) -> None:
        call(connection, "enqueue", "'reports'", "array[1]")
        with connect(conninfo) as user, open_session(conninfo) as session:
            with user.transaction():
                user.execute("set transaction isolation level repeatable read")
                user.execute("select from pgembed.work")
                work_once(session, reports)
                set_text(connection, REPORTS, 1, "Changed after the claim.")
                assert call(user, "enqueue", "'reports'", "array[1]") == 1
            drain(session, reports)
        assert_converged(connection, "reports")

    def test_more_keys_than_an_item_takes_become_several_items(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        keys = "array(select generate_series(1, 600))"
        assert call(connection, "enqueue", "'reports'", keys) == 600
        (largest,) = connection.execute("select max(records) from pgembed.work").fetchone() or (0,)
        assert largest == 256

    def test_no_keys_are_none_queued(self, connection: Connection, reports: Pipeline) -> None:
        none = "array(select id from public.reports where false)"
        assert call(connection, "enqueue", "'reports'", none) == 0


# Each spelling with the text that is its key.
SPELLINGS = [
    ("bigint", " 007 ", "7"),
    ("smallint", "+7", "7"),
    ("uuid", "{6BA7B810-9DAD-11D1-80B4-00C04FD430C8}", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    ("date", "January 5, 2024", "2024-01-05"),
    ("date", "20240105", "2024-01-05"),
    ("timestamptz", "2024-05-01T12:00:00+02:00", "2024-05-01 10:00:00+00"),
    ("timestamptz", "2024-05-01 10:00", "2024-05-01 10:00:00+00"),
    ("text", "007", "007"),
    ("text", "", ""),
]


class TestKeys:
    """A record has one key, whatever it is called by; what can be none, is refused."""

    @pytest.mark.parametrize(("key_type", "given", "expected"), SPELLINGS)
    def test_a_spelling_is_brought_to_the_text_of_the_key(
        self, connection: Connection, key_type: str, given: str, expected: str
    ) -> None:
        keyed_by(connection, key_type)
        connection.execute("set timezone = 'Asia/Kathmandu'; set datestyle = 'German, DMY'")
        connection.execute("select pgembed.enqueue('reports', %s::text[])", ([given],))
        assert queued_keys(connection) == [expected]

    @pytest.mark.parametrize("key_type", KEY_OF_NUMBER)
    def test_keys_of_their_own_type_are_those_of_the_scan(
        self, conninfo: str, connection: Connection, key_type: str
    ) -> None:
        pipeline = keyed_by(connection, key_type)
        with session_beside_odd_settings(connection, conninfo) as own:
            assert enqueue(own, pipeline, Selection()) == 3
        assert call(connection, "enqueue", "'reports'", "array(select id from reports)") == 0

    @pytest.mark.parametrize("types", list(pairwise([*KEY_OF_NUMBER, "smallint"])), ids="-".join)
    def test_keys_of_two_columns_are_those_of_the_scan(
        self, conninfo: str, connection: Connection, types: tuple[str, str]
    ) -> None:
        a, b = (f"(select {KEY_OF_NUMBER[type_]})" for type_ in types)
        connection.execute(
            f"create table pairs as select {a} as a, {b} as b, 'text' as body"
            " from generate_series(1, 3) n; create unique index on pairs (a, b)"
        )
        source = Table(schema="public", name="pairs")
        pipeline = make_pipeline(connection, source, id_fields=("a", "b"))
        with session_beside_odd_settings(connection, conninfo) as own:
            assert enqueue(own, pipeline, Selection()) == 3
        for build in ("json_build_array", "jsonb_build_array"):
            keys = f"array(select {build}(a, b) from pairs)"
            assert call(connection, "enqueue", "'reports'", keys) == 0

    def test_every_type_that_a_key_may_have_is_known(self, connection: Connection) -> None:
        made = {"uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "text": "x"}
        for key_type in set(KEY_TYPES.values()):
            value = made.get(
                key_type, "2024-01-01" if "ti" in key_type or key_type == "date" else "7"
            )
            row = connection.execute("select pgembed.key_text(%s, %s)", ([value], [key_type]))
            assert row.fetchone() != (None,)

    @pytest.mark.parametrize(
        ("key_type", "given"),
        [
            *(("bigint", given) for given in ("abc", "", "1.0", "9223372036854775808", "{}")),
            *(("uuid", given) for given in ("4711", "6ba7b810")),
            *(("date", given) for given in ("31.12.2024", "2024-02-30")),
            ("timestamptz", "yesterday evening"),
            (
                "text",
                "x" * 100 + "".join(map(chr, random.Random(1).choices(range(33, 127), k=2600))),
            ),
        ],
    )
    def test_what_cannot_be_a_key_is_refused_and_the_pipeline_goes_on(
        self, connection: Connection, key_type: str, given: str
    ) -> None:
        keyed_by(connection, key_type)
        for function in ("enqueue", "retry"):
            with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
                connection.execute(f"select pgembed.{function}('reports', %s::text[])", ([given],))
            message = str(refused.value.diag.message_primary)
            assert "cannot be a key of pipeline 'reports'" in message
            assert len(message) < 400
            assert str(refused.value.diag.message_hint).startswith("its key is id (")
        assert queued_keys(connection) == []

    @pytest.mark.parametrize(
        "given",
        [
            "7",
            '["x"]',
            '["x", 7, 8]',
            '["x", null]',
            '{"a": "x"}',
            '["x", "y"]',
            '["\\u0000", 7]',
            "[",
        ],
    )
    def test_what_cannot_be_a_key_of_two_columns_is_refused(
        self, connection: Connection, given: str
    ) -> None:
        connection.execute("create table pairs (a text, b bigint, body text, primary key (a, b))")
        make_pipeline(connection, Table(schema="public", name="pairs"), id_fields=("a", "b"))
        with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
            connection.execute("select pgembed.enqueue('reports', %s::text[])", ([given],))
        assert refused.value.diag.message_hint == "its keys are JSON arrays of a (text), b (bigint)"

    def test_the_longest_key_is_forgotten_and_not_stumbled_over(
        self, conninfo: str, connection: Connection
    ) -> None:
        pipeline = keyed_by(connection, "text")
        key = "".join(map(chr, random.Random(1).choices(range(33, 127), k=LONGEST_KEY)))
        query = "select pgembed.enqueue('reports', %s::text[])"
        connection.execute(query, ([key],))
        with open_session(conninfo) as session:
            assert work_once(session, pipeline)
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="it has 2685 bytes"):
            connection.execute(query, ([key + "x"],))

    def test_one_key_that_can_be_none_keeps_all_out(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        said = refusal(connection, "select pgembed.enqueue('reports', '{1,x,2}')")
        assert said == (
            "'x' cannot be a key of pipeline 'reports': invalid input syntax for type bigint:"
            ' "x"; its key is id (bigint)'
        )
        assert queued_keys(connection) == []

    def test_null_is_refused(self, connection: Connection, reports: Pipeline) -> None:
        assert "no part of a key is null" in refusal(
            connection, "select pgembed.enqueue('reports', array[1, null])"
        )
        for function, keys in product(("enqueue", "retry"), ("null", "null::bigint[]")):
            said = refusal(connection, f"select pgembed.{function}('reports', {keys})")
            assert said.startswith("there are no keys, but null; give an array")


class TestStates:
    """pgembed.pause, resume and retry."""

    @pytest.mark.parametrize(
        "statement",
        ["enqueue({}, '{{1}}')", "pause({})", "resume({})", "retry({})", "retry({}, '{{1}}')"],
    )
    @pytest.mark.parametrize("name", ["'rep'", "''", "null"])
    def test_unknown_pipeline_is_answered_with_those_there_are(
        self, connection: Connection, reports: Pipeline, statement: str, name: str
    ) -> None:
        said = refusal(connection, "select pgembed." + statement.format(name))
        assert said == f"there is no pipeline {name.replace('null', 'NULL')}; there is reports"

    def test_pause_says_what_workers_finish_and_resume_what_waits(
        self, conninfo: str, connection: Connection, reports: Pipeline
    ) -> None:
        call(connection, "enqueue", "'reports'", "array[1, 2]")
        held: list[int] = []

        def pause() -> None:
            held.append(call(connection, "pause", "'reports'", "'a test'"))

        set_text(connection, REPORTS, 1, "Changed.")
        with open_session(conninfo) as session:
            work_once(session, reports, FakeDevice(during=pause))
        assert held == [2]
        row = connection.execute("select state, state_reason from pgembed.progress").fetchone()
        assert row == ("paused", "a test")
        call(connection, "enqueue", "'reports'", "array[3]")
        assert call(connection, "resume", "'reports'") == 1

    def test_a_pause_without_a_reason_has_one(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        for arguments in (["'reports'"], ["'reports'", "null"]):
            call(connection, "pause", *arguments)
            row = connection.execute("select state_reason from pgembed.progress").fetchone()
            assert row == ("paused by a person",)

    def test_retry_puts_back_all_dead_letters_or_those_named(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        assert call(connection, "retry", "'reports'", "array[8]") == 1
        assert call(connection, "retry", "'reports'") == 1
        assert call(connection, "retry", "'reports'") == 0
        assert queued_keys(connection) == ["8", "9"]
        row = connection.execute("select total, done, pending, dead from pgembed.progress")
        assert row.fetchone() == (9, 7, 2, 0)

    def test_retry_of_what_is_no_dead_letter_does_nothing(
        self, connection: Connection, reports: Pipeline
    ) -> None:
        said = refusal(connection, "select pgembed.retry('reports', '{8,3}')")
        assert said == (
            "reports has no dead letter '3', so nothing was put back;"
            " they are listed in pgembed.dead_letters"
        )
        assert queued_keys(connection) == []


def test_two_who_enqueue_at_once_lose_nothing(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    def enqueue_some(start: int) -> None:
        with connect(conninfo) as session:
            for key in range(start, start + 20):
                call(session, "enqueue", "'reports'", f"array[{key}, {key + 10}]")

    threads = [threading.Thread(target=enqueue_some, args=(start,)) for start in (100, 110)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(queued_keys(connection)) == {str(key) for key in range(100, 140)}
    with open_session(conninfo) as session:
        drain(session, reports)
    assert_converged(connection, "reports")
