"""Dead letters are listed, and put back without a record or a count being lost."""

from __future__ import annotations

import json
import threading

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.dead_letters import (
    NEWEST,
    NEXT_SLICE,
    count_failures,
    read_failures,
    retry,
)
from tests.support.commands import pgembed
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import set_text, texts
from tests.support.fakes import POISON
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS
from tests.support.prepared import filled_by
from tests.support.working import drain, embed_documents, open_session

DEAD = 5


def make_reports(connection: Connection, session: Session) -> None:
    documents = [*[f"{POISON} {n}" for n in range(DEAD)], *texts(3)]
    embed_documents(connection, session, documents, max_attempts=1)


PREPARED = {"reports": filled_by(make_reports)}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A finished pipeline: records 1 to 5 are dead letters, 6 to 8 embedded."""
    return load_pipeline(connection, "reports")


def progress(connection: Connection) -> tuple[int, int, int, int]:
    row = connection.execute("select total, done, pending, dead from pgembed.progress").fetchone()
    assert row is not None
    return row


def cure(connection: Connection) -> None:
    for key in range(1, DEAD + 1):
        set_text(connection, REPORTS, key, f"Record {key} is harmless now.")


def test_the_newest_failures_come_first_with_their_error(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("update pgembed.records set dead_at = now() + '1 h' where key = '3'")
    rows = read_failures(connection, reports.name, limit=2)
    assert len(rows) == 2
    assert rows[0]["key"] == "3"
    assert "chokes" in rows[0]["last_error"]


def test_the_list_says_how_many_more_there_are(conninfo: str, reports: Pipeline) -> None:
    shown = pgembed(conninfo, "failures", "reports", "--all", "--limit", "2").stdout
    assert "the newest 2 of 5 dead letters" in shown
    assert "pgembed retry reports" in shown


def test_json_has_the_columns_of_the_view(conninfo: str, reports: Pipeline) -> None:
    rows = json.loads(pgembed(conninfo, "failures", "reports", "--all", "--json").stdout)
    assert len(rows) == DEAD
    columns = ["pipeline", "key", "attempts", "last_error", "dead_at", "error_kind"]
    assert list(rows[0]) == columns
    (group,) = json.loads(pgembed(conninfo, "failures", "reports", "--json").stdout)
    assert list(group) == ["pipeline", "error", "failures", "example_key"]
    assert group["failures"] == DEAD


def differ(connection: Connection) -> None:
    """Have records 1 to 3 fail for one reason, and 4 and 5 for another."""
    connection.execute(
        """
        update pgembed.records
        set last_error = case
            when key <= '3' then 'out of memory at ' || key else 'violates check "no' || key || '"'
        end
        where state = 'dead'
        """
    )


def test_equal_errors_are_one_line_with_an_example(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    differ(connection)
    shown = pgembed(conninfo, "failures", "reports").stdout
    assert [line.split() for line in shown.splitlines() if "memory" in line] == [
        ["3", "out", "of", "memory", "at", "N", "1"]
    ]
    assert "5 dead letters; put one kind back" in shown
    assert "pgembed retry reports --same-error-as 1," in shown
    few = pgembed(conninfo, "failures", "reports", "--limit", "1").stdout
    assert "5 dead letters, 2 of them with other errors" in few
    listed = pgembed(conninfo, "failures", "reports", "--same-error-as", "2").stdout
    assert "3 dead letters" in listed
    assert "check" not in listed


def test_one_kind_of_error_is_put_back_and_no_other(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    differ(connection)
    ran = pgembed(conninfo, "retry", "reports", "--same-error-as", "2")
    assert "put 3 dead letters of reports back" in ran.stdout
    assert {row["key"] for row in read_failures(connection, reports.name, limit=9)} == {"4", "5"}
    assert progress(connection) == (8, 3, 3, 2)
    for key in ("7", "no key"):
        assert pgembed(conninfo, "retry", "reports", "--same-error-as", key).exit_code == 2
    both = pgembed(conninfo, "retry", "reports", "--same-error-as", "4", "--key", "4")
    assert both.error == "give --key or --same-error-as, not both"
    assert progress(connection) == (8, 3, 3, 2)


def test_retrying_everything_keeps_the_progress_exact(
    connection: Connection, reports: Pipeline
) -> None:
    assert progress(connection) == (8, 3, 0, 5)
    assert retry(connection, reports, slice_records=2) == DEAD
    assert progress(connection) == (8, 3, 5, 0)
    assert count_failures(connection, reports) == 0


def test_a_cured_record_is_embedded_after_a_retry(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    cure(connection)
    retry(connection, reports)
    with open_session(conninfo) as session:
        drain(session, reports)
    assert_converged(connection, "reports")
    assert progress(connection) == (8, 8, 0, 0)


def test_a_record_that_fails_again_has_all_its_attempts_before_it(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute("update pgembed.pipelines set max_attempts = 2")
    retry(connection, reports, ["2"])
    with open_session(conninfo) as session:
        drain(session, reports)
    (attempts,) = connection.execute(
        "select attempts from pgembed.dead_letters where key = '2'"
    ).fetchone() or (None,)
    assert progress(connection) == (8, 3, 0, 5)
    assert attempts == 1  # the pipeline object still says one attempt


def test_only_the_named_keys_are_put_back(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    ran = pgembed(conninfo, "retry", "reports", "--key", "2", "--key", "4")
    assert "put 2 dead letters of reports back" in ran.stdout
    assert {row["key"] for row in read_failures(connection, reports.name, limit=9)} == {
        "1",
        "3",
        "5",
    }


def test_one_key_that_is_no_dead_letter_stops_the_whole_retry(
    connection: Connection, reports: Pipeline
) -> None:
    with pytest.raises(UsageError, match="no dead letter '7', so nothing was put back"):
        retry(connection, reports, ["2", "7"])
    assert progress(connection) == (8, 3, 0, 5)


def test_a_second_retry_finds_nothing_and_queues_nothing(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    retry(connection, reports)
    assert "reports has no dead letters" in pgembed(conninfo, "retry", "reports").stdout
    assert progress(connection) == (8, 3, 5, 0)


def test_two_retries_at_once_queue_every_record_once(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    retried: list[int] = []
    with connect(conninfo) as first, connect(conninfo) as second:
        thread = threading.Thread(target=lambda: retried.append(retry(second, reports)))
        with first.transaction():
            retried.append(retry(first, reports))
            thread.start()
            wait_until_blocked(connection, second.info.backend_pid)
        thread.join()
    assert retried == [DEAD, 0]
    assert progress(connection) == (8, 3, 5, 0)


def test_a_paused_pipeline_is_mentioned_after_a_retry(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    pause_pipeline(connection, reports, "paused by a person")
    assert "pgembed resume reports" in pgembed(conninfo, "retry", "reports").stdout


def test_a_limit_of_nothing_is_refused(conninfo: str, reports: Pipeline) -> None:
    ran = pgembed(conninfo, "failures", "reports", "--limit", "0")
    assert ran.error == "--limit 0: give at least 1"


@pytest.mark.parametrize("last_key", [None, "3"])
@pytest.mark.parametrize("kind", [None, "of old"])
def test_walk_through_dead_letters_is_never_by_the_small_index_of_their_kinds(
    connection: Connection, reports: Pipeline, kind: str | None, last_key: str | None
) -> None:
    """It is in another order: each slice would read and sort all that is left."""
    values = (reports.id, last_key, last_key, kind, kind, 10)
    with connection.transaction(force_rollback=True):
        # With nothing else left, it is taken if it can be.
        connection.execute("drop index pgembed.records_dead, pgembed.records_dead_by_key")
        connection.execute("alter table pgembed.records drop constraint records_pkey")
        connection.execute("set local enable_seqscan = off")
        plan = connection.execute("explain " + NEXT_SLICE, values).fetchall()
    assert "records_dead_by_kind" not in str(plan)


def test_the_newest_dead_letters_are_found_without_reading_all(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute(
        "insert into pgembed.records (pipeline_id, key, state, dead_at, last_error)"
        " select %s, 'old ' || n, 'dead', now() - n * interval '1 second', 'no ' || n"
        " from generate_series(1, 3000) as n",
        (reports.id,),
    )
    connection.execute("analyze pgembed.records")
    for kind in (None, "no N"):
        values = {"name": reports.name, "kind": kind, "limit": 20}
        plan = connection.execute("explain " + NEWEST, values).fetchall()
        assert "Index Scan Backward using records_dead on records" in str(plan)
