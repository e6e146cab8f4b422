"""A server of searches keeps the SQL of one, for others that ask for the same."""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineReplaced, SetupError, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.relation import MOST_KEPT, Relations
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.counting import counting_connection
from tests.support.searching import QUERY, SEARCHED, brute_force

PREPARED = SEARCHED


def test_sql_that_is_kept_is_of_the_pipeline_as_it_was_loaded_and_of_what_is_asked(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    relations = Relations()

    def find(pipeline: Pipeline, **asked: object) -> list[Hit]:
        request = SearchRequest(limit=7, threshold=-1.0, **asked)  # type: ignore[arg-type]
        with counting_connection(conninfo) as own:
            found = search(own, pipeline, QUERY, request, relations=relations)
            sent.append(own.round_trips)
        return found

    sent: list[int] = []
    plain = find(reports)
    assert [(hit.key, hit.chunk_index) for hit in plain] == [
        (key, index) for key, index, _ in brute_force(connection, "true")[:7]
    ]
    assert find(reports) == plain
    assert sent == [sent[0], sent[0] - 2]
    for where in ("kind = 7", "kind = 8"):
        wanted = brute_force(connection, where)[:7]
        assert [hit.key for hit in find(reports, where=where)] == [key for key, _, _ in wanted]
    assert {*find(reports, columns=("kind",))[0].columns} == {"kind"}
    assert {*find(reports, columns=("kind", "made"))[0].columns} == {"kind", "made"}
    connection.execute("alter table reports rename column made to day")
    with pytest.raises(SetupError, match="made does not exist"):
        find(reports, columns=("kind", "made"))
    reloaded = load_pipeline(connection, "reports")
    with pytest.raises(UsageError, match=r"made: neither .* has a column"):
        find(reloaded, columns=("kind", "made"))
    assert find(reloaded) == plain
    [kept] = {id(each): each for each in relations._kept.values() if each[0] is reloaded}.values()
    relations._kept.update({(number,): kept for number in range(MOST_KEPT)})
    find(reloaded, columns=("day",))
    assert len(relations._kept) == 1, "what clients ask for does not grow without an end"
    drop_pipeline(connection, reloaded, delete_vectors=False)
    with pytest.raises(PipelineReplaced):
        find(reloaded, columns=("day",))


def test_tables_that_may_become_a_trap_are_looked_at_each_time(
    connection: Connection, reports: Pipeline
) -> None:
    connection.execute("create role less_trusted; alter table reports_chunks owner to less_trusted")
    try:
        relations = Relations()
        assert search(connection, reports, QUERY, SearchRequest(), relations=relations)
        assert relations._kept == {}
    finally:
        connection.execute("reassign owned by less_trusted to current_user; drop role less_trusted")
