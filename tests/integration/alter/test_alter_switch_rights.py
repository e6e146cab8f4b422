"""Everybody may do with the new vectors what they might do with the old ones, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.altering import begin, embed
from tests.support.columns import into_column
from tests.support.corpus import texts
from tests.support.oracle import assert_converged
from tests.support.working import drain, embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")

READER, WRITER = "reader_of_rights", "writer_of_rights"


@pytest.fixture(autouse=True)
def _roles(connection: Connection) -> Iterator[None]:
    connection.execute(f"create role {READER}; create role {WRITER}")
    yield
    connection.execute(f"drop owned by {READER}, {WRITER}; drop role {READER}, {WRITER}")


RIGHTS = """
with tree as (
    select relid from pg_partition_tree('public.{table}')
    union
    select 'public.{table}'::regclass
)
select relid::regclass::text, attname, grantee::regrole::text, privilege_type, is_grantable
from tree
join pg_class on pg_class.oid = relid
cross join lateral (
    select null::name, relacl where relacl is not null
    union all
    select attname, attacl from pg_attribute
    where attrelid = relid and attacl is not null and not attisdropped
) as given (attname, acl)
cross join lateral aclexplode(acl)
where grantee <> relowner
order by 1, 2, 3, 4
"""


def rights(connection: Connection, table: str = "reports_chunks") -> list[tuple[object, ...]]:
    """Return the rights on a table, its parts and their columns, but those of the owner."""
    return connection.execute(RIGHTS.format(table=table)).fetchall()


def switched(conninfo: str, pipeline: Pipeline) -> None:
    with connect(conninfo) as own:
        switch(own, pipeline)


@pytest.mark.on_both_servers
@pytest.mark.parametrize("partition_by", [None, "hash:3", "range:id:1,9"])
def test_rights_of_a_table_and_of_its_parts_are_as_before(
    conninfo: str, connection: Connection, session: Session, partition_by: str | None
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by=partition_by)
    connection.execute(
        f"grant select, insert on reports_chunks to {WRITER} with grant option;"
        f"grant select (text_chunk) on reports_chunks to public, {READER}"
    )
    if partition_by is not None:
        connection.execute(f"grant select on reports_chunks_0 to {READER}")
        connection.execute(f"grant update (tokens) on reports_chunks_1 to {WRITER}")
    before = rights(connection)
    assert len(before) >= 4
    embed(session, begin(connection, pipeline))
    switched(conninfo, pipeline)
    assert rights(connection) == before
    assert_converged(connection, "reports")


@pytest.mark.parametrize("partition_by", [None, "hash:3"])
def test_right_that_was_taken_away_does_not_come_back(
    conninfo: str, connection: Connection, session: Session, partition_by: str | None
) -> None:
    connection.execute(
        f"alter default privileges in schema public grant select on tables to {READER}"
    )
    pipeline = embed_documents(connection, session, texts(12), partition_by=partition_by)
    connection.execute(f"grant insert on reports_chunks to {WRITER}, {READER} with grant option")
    connection.execute(f"revoke select on reports_chunks from {READER}")
    if partition_by is not None:
        connection.execute(f"revoke select on reports_chunks_0 from {READER}")
    before = rights(connection)
    successor = begin(connection, pipeline)
    of_next = rights(connection, successor.target.name)
    assert [row[1:] for row in of_next] == [row[1:] for row in before]
    embed(session, successor)
    connection.execute(f"revoke insert on reports_chunks from {WRITER}")
    before = rights(connection)
    switched(conninfo, pipeline)
    assert rights(connection) == before


def test_rights_on_every_part_are_those_on_every_new_part(
    conninfo: str, connection: Connection, session: Session
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by="hash:3")
    connection.execute(f"grant select on all tables in schema public to {READER}")
    embed(session, begin(connection, pipeline, Changes(partition_by="hash:2")))
    switched(conninfo, pipeline)
    chunks = [row for row in rights(connection) if row[2] == READER]
    tables = ["reports_chunks", "reports_chunks_0", "reports_chunks_1"]
    assert chunks == [(table, None, READER, "SELECT", False) for table in tables]


@pytest.mark.parametrize("partition_by", ["hash:2", ""])
def test_right_that_no_new_part_can_take_is_named(
    conninfo: str, connection: Connection, session: Session, partition_by: str
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by="hash:3")
    connection.execute(f"grant select, update (tokens) on reports_chunks_1 to {READER}")
    embed(session, begin(connection, pipeline, Changes(partition_by=partition_by)))
    says = (
        rf"public.reports_chunks_1 gives rights that .*: select to {READER}, update \(tokens\) to"
        rf" {READER}; revoke them"
    )
    with pytest.raises(UsageError, match=says):
        switched(conninfo, pipeline)
    connection.execute(f"revoke select, update (tokens) on reports_chunks_1 from {READER}")
    switched(conninfo, pipeline)


HIDING = (
    ("create policy own on {0}_1 using (true)", "policy own of the part"),
    ("alter table {0}_1 enable row level security", "row level security of the part"),
    ("create rule quiet as on delete to {0}_1 do instead nothing", "rule quiet of the part"),
    (
        "create trigger quiet before insert on {0}_1 for each row execute function"
        " suppress_redundant_updates_trigger()",
        "trigger quiet of the part",
    ),
)


def test_what_a_part_alone_has_is_not_lost_without_a_word(
    conninfo: str, connection: Connection, session: Session
) -> None:
    pipeline = embed_documents(connection, session, texts(12), partition_by="hash:3")
    embed(session, begin(connection, pipeline))
    for statement, says in HIDING:
        connection.execute(statement.format("reports_chunks"))
        with pytest.raises(UsageError, match=f"{says} FOR VALUES WITH .modulus 3, remainder 1."):
            switched(conninfo, pipeline)
        connection.execute(statement.format("reports_chunks_next"))
    switched(conninfo, pipeline)


def test_rights_on_a_column_in_parts_are_as_before(
    conninfo: str, connection: Connection, session: Session
) -> None:
    connection.execute(
        "create table reports (id bigint primary key, body text) partition by range (id);"
        "create table one partition of reports for values from (0) to (5);"
        "create table two partition of reports default;"
        "insert into reports select n, 'A report.' from generate_series(1, 9) as n"
    )
    pipeline = into_column(connection)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline)
    connection.execute(
        f"grant select (embedding) on reports to {READER}, {WRITER};"
        f"grant update (embedding) on one to {WRITER}"
    )
    successor = begin(connection, pipeline)
    connection.execute(f"revoke select (embedding) on reports from {WRITER}")
    before = [row for row in rights(connection, "reports") if row[1] == "embedding"]
    drain(session, successor)
    switched(conninfo, pipeline)
    assert rights(connection, "reports") == before
