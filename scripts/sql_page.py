"""Writes docs/sql.md from what the catalogue says of schema pgembed: ``make docs``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.session import Connection, connect
from tests.servers import temporary_server

PAGE = Path(__file__).parents[1] / "docs" / "sql.md"

INTRODUCTION = """\
# SQL

[Examples](#examples) · [Functions](#functions) · [Views](#views)

What there is for people who live in psql, and for programs in any language. This page is made from
the database's own catalogue (`make docs`); in psql, `\\df+ pgembed.*` and `\\d+ pgembed.progress`
say the same.

Views and functions are the public interface of schema `pgembed`: columns and functions are only
ever added. [Who may do what](security.md#roles) is a matter of rights on them and on the tables.

## Examples

<!-- watch: executed by the tests -->
```sql
select pipeline, percent, pending, dead, records_per_second, eta from pgembed.progress;
select host, state, device, chunks_per_second from pgembed.worker_status;
select * from pgembed.in_flight order by running_for desc limit 5;
select key, attempts, last_error from pgembed.dead_letters order by dead_at desc limit 5;
```

<!-- act: executed by the tests -->
```sql
-- embed these now, before what else waits
select pgembed.enqueue('reports', array[4711, 4712]);
select pgembed.enqueue('reports', array(
    select mdr_text_key from event_text where foi_text like '%pump%'
));

-- in one transaction with the change
begin;
update event_text set foi_text = 'The pump was returned.' where mdr_text_key = 4711;
select pgembed.enqueue('reports', '{4711}');
commit;

-- stop workers for a while
select * from pgembed.pause('reports', 'the nightly load runs');
select * from pgembed.resume('reports');

-- try dead letters again: those with one error, and all of them
select pgembed.retry('reports', array(
    select key from pgembed.dead_letters where pipeline = 'reports' and last_error like '%memory%'
));
select pgembed.retry('reports');
```

Search, with the vector that the pipeline's model made of a query ([more](search.md#in-sql)):

<!-- search: executed by the tests -->
```sql
select key, score, chunk
from pgembed.search('reports', array[1, 0, 0, 0, 0, 0, 0, 0], 10, '{"mdr_text_key": {"<": 5000}}');
```

The key of a pipeline with several key columns is a JSON array:

<!-- several: executed by the tests -->
```sql
select pgembed.enqueue('visits', array(
    select json_build_array(tenant, id) from visits where day > '2026-01-01'
));
```

## Functions

- **They are part of your transaction.** A worker sees what they did when you commit.
- **Keys** may be given in any way that PostgreSQL reads: `007`, a UUID in capitals. The queue gets
  the one text that is theirs. A key that cannot be one of the pipeline, such as `'abc'` for a
  bigint, is refused, and nothing is queued.
- **`enqueue` does not look into your table.** A worker does, and finds out whether the record is
  new, changed, unchanged or gone. [`pgembed enqueue`](how-it-works.md#what-enqueue-finds) looks for
  records that want it.
- **A key that waits already is not queued twice**, unless what waits may be claimed without your
  change being seen: when a worker holds it at this moment, and when your transaction has written
  something before, or is not READ COMMITTED. Nor does a scan's item do where there are vectors:
  it tells of no deletion. To know this, `enqueue` looks through the pipeline's whole queue: while a
  large table is loaded, that takes seconds. To queue every change of a table, let
  [triggers](keeping-in-sync.md) do it.
- **Rights.** `enqueue` works for whoever may execute it, whatever their rights on the tables, and
  by default that is its owner alone. A program that writes the source needs `usage` on schema
  `pgembed`, and `grant execute on function pgembed.enqueue(text, text[]) to …`. The other functions
  act with the rights of whoever calls them.
"""

FUNCTIONS = """
select
    format(
        'pgembed.%s(%s) → %s',
        proname,
        regexp_replace(pg_get_function_arguments(oid), ', OUT .*', ''),
        coalesce(
            substring(pg_get_function_arguments(oid) from ', OUT (.*)'), pg_get_function_result(oid)
        )
    ),
    obj_description(oid, 'pg_proc')
from pg_proc
where pronamespace = 'pgembed'::regnamespace
    and prokind = 'f'
    and prorettype <> 'trigger'::regtype
    and obj_description(oid, 'pg_proc') !~ 'For (the other functions|retry)[.]$'
order by proname collate "C", oid
"""

VIEWS = """
select oid, relname, obj_description(oid, 'pg_class')
from pg_class
where relnamespace = 'pgembed'::regnamespace and relkind = 'v'
order by relname collate "C"
"""

COLUMNS = """
select attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum)
from pg_attribute
where attrelid = %s and attnum > 0 and not attisdropped
order by attnum
"""


def sql_page(connection: Connection) -> str:
    """Return the page for the schema of this database, the same on every run."""
    return INTRODUCTION + "\n" + "\n".join([*_functions(connection), *_views(connection)])


def _functions(connection: Connection) -> Iterator[str]:
    yield from ("| function | |", "|---|---|")
    for signature, comment in connection.execute(FUNCTIONS):
        yield f"| `{signature}` | {comment} |"
    yield ""


def _views(connection: Connection) -> Iterator[str]:
    yield from ("## Views", "")
    for oid, name, comment in connection.execute(VIEWS).fetchall():
        yield from (f"### pgembed.{name}", "", comment, "")
        yield from ("| column | type | |", "|---|---|---|")
        for column, type_, meaning in connection.execute(COLUMNS, (oid,)):
            yield f"| `{column}` | {type_} | {meaning} |"
        yield ""


def main() -> None:
    """Write the page for a database that was migrated just now."""
    with temporary_server() as server:
        migrate(server.conninfo())
        with connect(server.conninfo()) as connection:
            PAGE.write_text(sql_page(connection), encoding="utf-8")


if __name__ == "__main__":
    main()
