"""Keys of several columns: one record, one text in the queue, whatever the types are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.corpus import KEY_OF_NUMBER, texts
from tests.support.fakes import POISON, FakeDevice, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.spelling import session_beside_odd_settings
from tests.support.working import drain

COPIES = 3


def make_pairs(
    connection: Connection,
    types: Sequence[str],
    documents: Sequence[str],
    *,
    table: str = "pairs",
    names: Sequence[str] = ("a", "b"),
) -> Table:
    """Create a source keyed by two columns; the first of them has each value several times."""
    table_name, first, second = map(sql.Identifier, (table, *names))
    connection.execute(
        sql.SQL("create table {} ({} {}, {} {}, body text, primary key ({}, {}))").format(
            table_name, first, sql.SQL(types[0]), second, sql.SQL(types[1]), first, second
        )
    )
    fill = sql.SQL(
        "insert into {} select (select {} from (select d.n / %s as n) as tier), {}, document"
        " from unnest(%s::text[]) with ordinality as d (document, n)"
    ).format(table_name, *(sql.SQL(KEY_OF_NUMBER[type_]) for type_ in types))
    connection.execute(fill, (COPIES, list(documents)))
    return Table(schema="public", name=table)


def two_columns(connection: Connection, source: Table, **fields: Any) -> Pipeline:
    return make_pipeline(connection, source, **{"id_fields": ("a", "b"), **fields})


def target_rows(connection: Connection, columns: str = "fulltext_a, fulltext_b") -> int:
    query = f"select count(distinct ({columns})) from pairs_chunks"
    return one_value(connection, query)


# Each type in each place, beside itself and beside another: no place looks at the other's type.
TYPES = list(KEY_OF_NUMBER)
PAIRS = [*zip(TYPES, TYPES, strict=True), *zip(TYPES, TYPES[1:] + TYPES[:1], strict=True)]


@pytest.mark.parametrize("types", PAIRS, ids="-".join)
def test_keys_of_every_type_are_embedded_changed_and_forgotten(
    conninfo: str, connection: Connection, session: Session, types: tuple[str, str]
) -> None:
    source = make_pairs(connection, types, texts(11))
    pipeline = two_columns(connection, source)
    # What others have set must not show in a key.
    with session_beside_odd_settings(connection, conninfo) as own:
        assert enqueue(own, pipeline, Selection(), slice_records=4) == 11
        drain(session, pipeline)
        assert target_rows(connection) == 11
        connection.execute("update pairs set body = 'changed' where body like 'Report 5.%'")
        connection.execute("delete from pairs where body like 'Report 7.%'")
        assert enqueue(own, pipeline, Selection(), slice_records=4) == 2
        assert enqueue(own, pipeline, Selection(), slice_records=4) == 0
        drain(session, pipeline)
    connection.execute("set timezone = 'UTC'; set datestyle = 'ISO, YMD'")
    assert target_rows(connection) == 10
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
def test_key_of_three_columns_has_one_target_column_each_of_its_own_type(
    connection: Connection, session: Session
) -> None:
    connection.execute(
        "create table visits (tenant uuid, id bigint, day date, body text,"
        " primary key (tenant, id, day))"
    )
    connection.execute(
        "insert into visits select md5((n % 2)::text)::uuid, n, date '2024-01-01' + n,"
        " 'Visit ' || n from generate_series(1, 9) n"
    )
    source = Table(schema="public", name="visits")
    pipeline = make_pipeline(connection, source, id_fields=("tenant", "id", "day"))
    enqueue(connection, pipeline, Selection(), slice_records=2)
    drain(session, pipeline)
    joined = connection.execute(
        "select count(*), min(pg_typeof(fulltext_day)::text) from visits_chunks"
        " join visits on (fulltext_tenant, fulltext_id, fulltext_day) = (tenant, visits.id, day)"
    )
    assert joined.fetchone() == (9, "date")
    assert_converged(connection, "reports")


def test_statements_over_a_composite_key_use_the_targets_index(connection: Connection) -> None:
    source = make_pairs(connection, ("integer", "text"), [])
    pipeline = two_columns(connection, source)
    connection.execute("set enable_seqscan = off")
    key = pipeline.key.value(sql.SQL("'[7, \"x\"]'::text"))
    query = sql.SQL("explain select from pairs_chunks as target where {} = {}").format(
        pipeline.key.of("target", pipeline.spec.columns.fulltext_id), key
    )
    plan = "\n".join(line for (line,) in connection.execute(query))
    assert "fulltext_a = 7" in plan
    assert "fulltext_b = 'x'" in plan
    assert "Filter" not in plan


def test_walk_over_a_composite_key_goes_on_from_its_cursor_by_the_index(
    connection: Connection,
) -> None:
    make_pairs(connection, ("integer", "text"), texts(30))
    connection.execute("set enable_seqscan = off; set enable_sort = off")
    query = (
        "explain select from pairs as source where row(a, b) > row(5, 'x') order by a, b limit 4"
    )
    plan = "\n".join(line for (line,) in connection.execute(query))
    assert "Index Cond: (ROW(a, b) > ROW(5, 'x'::text))" in plan
    assert "Sort" not in plan


def test_text_in_a_key_may_look_like_json(connection: Connection, session: Session) -> None:
    connection.execute("create table pairs (a text, b text, body text, primary key (a, b))")
    odd = ['["', '"]', "\\", "'", ", ", "", "\n\t", "\x1f", "{}", "%s", "é键🙂", "null"]
    for first, second in product(odd, odd):
        connection.execute("insert into pairs values (%s, %s, %s)", (first, second, first + "x"))
    pipeline = two_columns(connection, Table(schema="public", name="pairs"))
    assert enqueue(connection, pipeline, Selection(), slice_records=10) == len(odd) ** 2
    drain(session, pipeline)
    assert target_rows(connection) == len(odd) ** 2
    assert_converged(connection, "reports")


def test_rows_with_a_null_in_their_key_are_no_records(
    connection: Connection, session: Session
) -> None:
    connection.execute("create table pairs (a int, b int, body text, unique (a, b))")
    connection.execute(
        "insert into pairs values (1, 1, 'a record'), (1, null, 'none'), (null, 1, 'none'),"
        " (null, null, 'none')"
    )
    pipeline = two_columns(connection, Table(schema="public", name="pairs"))
    assert enqueue(connection, pipeline, Selection()) == 1
    drain(session, pipeline)
    assert_converged(connection, "reports")


def test_dead_letter_of_a_composite_key_is_retried_by_its_text(
    connection: Connection, session: Session
) -> None:
    source = make_pairs(connection, ("bigint", "date"), [POISON, "a fine text"])
    pipeline = two_columns(connection, source, max_attempts=1)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline)
    key = one_value(connection, "select key from pgembed.dead_letters")
    assert key == '[0, "1999-12-26"]'
    assert retry(connection, pipeline, [key]) == 1
    drain(session, pipeline)
    assert_converged(connection, "reports")


def test_search_tells_a_composite_key_as_the_queue_does(
    connection: Connection, session: Session
) -> None:
    source = make_pairs(connection, ("bigint", "text"), ["The pump stopped.", "A valve leaked."])
    pipeline = two_columns(connection, source)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline, FakeDevice())
    vector = unit_vector("A valve leaked.")
    (hit,) = search(connection, pipeline, vector, SearchRequest(limit=1, threshold=-1))
    assert hit.key == (0, "key/2 'ü\"")
    assert hit.key_text == '[0, "key/2 \'\'ü\\""]'.replace("''", "'")
    assert hit.score == pytest.approx(1)


def test_target_names_of_a_composite_key_are_free(connection: Connection, session: Session) -> None:
    source = make_pairs(connection, ("uuid", "text"), texts(5), names=('Tenant "A"', "键 {x}"))
    pipeline = make_pipeline(
        connection,
        source,
        id_fields=('Tenant "A"', "键 {x}"),
        columns=TargetColumns(fulltext_id=('the "tenant"', "le numéro")),
    )
    enqueue(connection, pipeline, Selection(), slice_records=2)
    drain(session, pipeline)
    assert target_rows(connection, '"the ""tenant""", "le numéro"') == 5
    assert_converged(connection, "reports")


def test_target_names_of_another_number_are_refused(connection: Connection) -> None:
    source = make_pairs(connection, ("uuid", "text"), [])
    for names in (("one",), ("one", "two", "three")):
        with pytest.raises(UsageError, match=r"the key has 2 columns \(a, b\) .* names [13]"):
            two_columns(connection, source, columns=TargetColumns(fulltext_id=names))


@pytest.mark.parametrize(
    ("index", "taken"),
    [
        ("create unique index on pairs (a, b)", True),
        ("create unique index on pairs (b, a)", True),
        ("create unique index on pairs (a)", True),
        ("create unique index on pairs (a, b) include (body)", True),
        ("create index on pairs (a, b)", False),
        ("create unique index on pairs (a, body)", False),
        ("create unique index on pairs (a, b) where a > 0", False),
        ("create unique index on pairs (a, lower(b))", False),
    ],
)
def test_any_unique_index_over_key_columns_makes_them_a_key(
    connection: Connection, index: str, taken: bool
) -> None:
    connection.execute("create table pairs (a int, b text, body text)")
    connection.execute(index)
    source = Table(schema="public", name="pairs")
    if taken:
        assert two_columns(connection, source).key.names == ("a", "b")
        return
    with pytest.raises(UsageError, match=r"no unique key on a, b; add one .*pairs \(a, b\)\)"):
        two_columns(connection, source)


def test_view_is_searched_for_duplicates_of_the_whole_key(connection: Connection) -> None:
    make_pairs(connection, ("integer", "text"), texts(4))
    connection.execute("create view seen as select * from pairs")
    source = Table(schema="public", name="seen")
    assert two_columns(connection, source).key.names == ("a", "b")
    with pytest.raises(UsageError, match="several rows with the same a, such as "):
        make_pipeline(connection, source, name="other", id_fields=("a",))
