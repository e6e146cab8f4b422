"""A pipeline that fails where a test wants it, its neighbour, and a worker of both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker.loop import Shared, run_loop
from pgqueue_embed.worker.stop_reasons import STOPPED
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, FixedPipelines, fake_chunker
from tests.support.light import light_settings
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.rows import one_row, one_value
from tests.support.working import drain

RECORDS = 6


NEIGHBOURS = 2


# What fails, and where. Each statement is executed once the failing pipeline has been embedded, and
# all of its records have changed since.
RAISING = """
create or replace function public.refuse(id bigint, says text) returns boolean
language plpgsql as $$
begin
    if id = 3 and {where} then raise exception 'no % at all', says using errcode = '{code}'; end if;
    return true;
end $$;
"""


ROW_TRIGGER = """
create function public.refuse() returns trigger language plpgsql as $$
begin
    perform public.refuse({row}.fulltext_id, 'vectors');
    return {row};
end $$;
"""


BEFORE_INSERT = (
    RAISING
    + ROW_TRIGGER.replace("{row}", "new")
    + """
create trigger refuse before insert on public.reports_chunks
for each row execute function public.refuse();
"""
)


DEFERRED = (
    RAISING
    + ROW_TRIGGER.replace("{row}", "new")
    + """
create constraint trigger refuse after insert on public.reports_chunks
deferrable initially deferred for each row execute function public.refuse();
"""
)


BEFORE_DELETE = (
    RAISING
    + ROW_TRIGGER.replace("{row}", "old")
    + """
create trigger refuse before delete on public.reports_chunks
for each row execute function public.refuse();
update public.base set body = '' where id = 3;
"""
)


REUSED = (
    RAISING
    + """
alter table public.reports_chunks rename to stored;
create view public.reports_chunks as
select id, fulltext_id, chunk_id, chunk_index, start_char, end_char, tokens, embedding, created_at,
    case when public.refuse(fulltext_id, 'vectors') then text_chunk end as text_chunk
from public.stored;
create function public.store() returns trigger language plpgsql as $$
begin
    insert into public.stored (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char,
        tokens, embedding)
    values (new.fulltext_id, new.chunk_id, new.chunk_index, new.text_chunk, new.start_char,
        new.end_char, new.tokens, new.embedding);
    return new;
end $$;
create trigger store instead of insert on public.reports_chunks
for each row execute function public.store();
"""
)


SWEPT = (
    RAISING
    + """
truncate pgembed.work;
insert into pgembed.work (pipeline_id, keys, records, sweep_after)
select id, '{{}}', 0, '' from pgembed.pipelines where name = 'reports';
"""
)


# The claim's own connection executes nothing on the source but the re-check.
IN_CLAIM = "current_setting('application_name') = 'pgembed claim'"


@dataclass(frozen=True)
class Origin:
    """Where an error comes from: statements with `code`, for the record 3 `where` this is so."""

    statements: str
    where: str = "true"

    def arrange(self, connection: Connection, code: str) -> None:
        connection.execute(self.statements.format(code=code, where=self.where))

    def change(self, connection: Connection, code: str) -> None:
        """Raise another error where one was arranged."""
        connection.execute(RAISING.format(code=code, where=self.where))


SOURCE_ORIGINS = {
    "source read": Origin(RAISING, "says = 'text'"),
    "source's own condition": Origin(RAISING, "says = 'row'"),
    "where-condition": Origin(RAISING, "says = 'where'"),
    "re-check under the mutex": Origin(RAISING, IN_CLAIM),
    "reuse's read": Origin(REUSED, "says = 'vectors'"),
    "sweep": Origin(SWEPT),
}


TARGET_ORIGINS = {
    "target write": Origin(BEFORE_INSERT, "says = 'vectors'"),
    "deferred constraint at COMMIT": Origin(DEFERRED, "says = 'vectors'"),
    "target clear": Origin(BEFORE_DELETE, "says = 'vectors'"),
}


ORIGINS = {**SOURCE_ORIGINS, **TARGET_ORIGINS}


@contextmanager
def working(conninfo: str, pipelines: list[Pipeline], **settings: object) -> Iterator[Shared]:
    """Run one loop of a worker in a thread while the block lasts; it may not end by itself."""
    shared = Shared.of(
        conninfo,
        light_settings(drain=False, lease_seconds=20, **settings),
        worker_id=1,
        device=FakeDevice(),
        served=FixedPipelines(pipelines, fake_chunker()),
    )
    thread = threading.Thread(target=run_loop, args=(shared,), daemon=True)
    thread.start()
    try:
        yield shared
        assert thread.is_alive(), shared.shutdown.failure
    finally:
        shared.shutdown.finish(STOPPED)
        thread.join(20)
    assert not thread.is_alive()
    assert shared.shutdown.failure is None


def make_sick_and_neighbour(connection: Connection, session: Session) -> None:
    make_source(connection, texts(RECORDS), table="base")
    connection.execute(RAISING.format(where="false", code="P0001"))
    connection.execute(
        "create view public.reports as"
        " select id, case when public.refuse(id, 'text') then body end as body"
        " from public.base where public.refuse(id, 'row')"
    )
    make_source(connection, texts(NEIGHBOURS), table="notes")
    failing = make_pipeline(connection, max_attempts=2, where="public.refuse(id, 'where')")
    neighbour = make_pipeline(connection, Table(schema="public", name="notes"), name="notes")
    enqueue(connection, failing, Selection())
    drain(session, failing)
    connection.execute("update public.base set body = 'Changed. ' || body")
    enqueue(connection, failing, Selection())
    enqueue(connection, neighbour, Selection())


def pending(connection: Connection, name: str) -> int:
    """Return how many records wait or are in flight; pgembed.progress takes ten times as long."""
    query = (
        "select coalesce(sum(greatest(records, 1)), 0) from pgembed.work"
        " where pipeline_id = (select id from pgembed.pipelines where name = %s)"
    )
    return one_value(connection, query, (name,))


def state(connection: Connection) -> tuple[str, str | None]:
    query = "select state, state_reason from pgembed.pipelines where name = 'reports'"
    state, reason = one_row(connection, query)
    return state, reason


def letters(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("select key, last_error from pgembed.dead_letters").fetchall())


SICK_AND_NEIGHBOUR = filled_by(make_sick_and_neighbour)
