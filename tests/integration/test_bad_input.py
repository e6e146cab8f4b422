"""Odd input works, impossible input is refused in one line, and nothing is ever half made."""

from __future__ import annotations

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from psycopg import sql

from pgqueue_embed.__main__ import main
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.queue.dead_letters import retry
from pgqueue_embed.queue.deleted import enqueue_deleted
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker.settings import WorkerSettings
from tests.support.commands import Ran, pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

NAMES = {
    "quotes": 'it\'s "quoted"',
    "spaces": "  two  words ",
    "unicode": "报告 отчёт 🙂",
    "right to left": "تقرير\u200f",
    "63 bytes": "é" * 31 + "x",
    "sql": "x; drop table pgembed.work; --",
    "braces": "{0} {name} {{}}",
    "keyword": "select",
    "backslash": "a\\b\\n",
    "dot": "a.b",
    "upper case": "Reports",
    "control": "tab\tline\nbell\a",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_that_postgresql_takes_works(
    connection: Connection, conninfo: str, name: str
) -> None:
    connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
    key = f"{name[:25]} key"
    names = {"table": name, "schema": name, "text_field": name, "id_field": key}
    source = make_source(connection, texts(5), **names)
    pipeline = make_pipeline(
        connection,
        source,
        name=name if name.isprintable() else "reports",
        target=Table(schema=name, name=f"{name[:25]} vectors"),
        text_fields=(name,),
        id_fields=(key,),
    )
    with open_session(conninfo) as session:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline)
        enqueue(connection, pipeline, Selection(everything=True))
        drain(session, pipeline)
    assert_converged(connection, pipeline.name)


KEYS = (
    "",
    " ",
    "a" * 10_000,
    "it's",
    '"',
    "\\",
    "{}",
    "NULL",
    "null",
    "a,b",
    "[1]",
    "تقرير",
    "\u200b",
    "%s %",
    "🙂",
)


def test_any_text_is_a_key_and_null_is_none(connection: Connection, conninfo: str) -> None:
    connection.execute("create table public.reports (id text unique, body text)")
    fill = (
        "insert into public.reports select key, 'The text of ' || key from unnest(%s::text[]) key"
    )
    connection.execute(fill, (list(KEYS),))
    connection.execute("insert into public.reports values (null, 'without a key')")
    pipeline = make_pipeline(connection)
    assert enqueue(connection, pipeline, Selection()) == len(KEYS)
    with open_session(conninfo) as session:
        drain(session, pipeline)
    vectors = "select count(distinct fulltext_id) from public.reports_chunks"
    assert connection.execute(vectors).fetchone() == (len(KEYS),)


def test_key_that_no_index_takes_is_a_dead_letter_until_its_row_is_deleted(
    connection: Connection, conninfo: str
) -> None:
    chance = random.Random(1)
    key = "".join(chr(chance.randint(0x4E00, 0x9FFF)) for _ in range(4000))
    connection.execute("create table public.plain (id text, body text)")
    connection.execute("insert into public.plain values (%s, 'text'), ('short', 'text')", (key,))
    connection.execute("create view public.reports as select * from public.plain")
    pipeline = make_pipeline(connection, max_attempts=1)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
        ((dead, error),) = connection.execute("select key, last_error from pgembed.dead_letters")
        assert dead == key
        assert error.startswith("the target table refused it: index row ")
        connection.execute("delete from public.plain where id <> 'short'")
        assert enqueue(connection, pipeline, Selection()) == 1
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert connection.execute("select key from pgembed.records").fetchall() == [("short",)]


def long_keys() -> list[str]:
    """Return texts that fit an index, of which two begin alike: as JSON, six times as long."""
    chance = random.Random(1)
    slug = "".join(chr(chance.randint(1, 31)) for _ in range(2300))
    return [slug, slug[:-1] + "x", "字" * 166 + "x", "é" * 250, "é" * 250 + "x", "short"]


@pytest.mark.on_both_servers
def test_long_keys_are_embedded_retried_queued_once_and_forgotten(
    connection: Connection, conninfo: str
) -> None:
    connection.execute(
        "create table public.reports (tenant int, slug text, body text, primary key (tenant, slug))"
    )
    connection.execute(
        "insert into public.reports select 1, slug, 'Report ' || n || ' ' || %s"
        " from unnest(%s::text[]) with ordinality as s (slug, n)",
        (POISON, long_keys()),
    )
    pipeline = make_pipeline(connection, id_fields=("tenant", "slug"), max_attempts=1)
    assert enqueue(connection, pipeline, Selection()) == len(long_keys())
    with open_session(conninfo) as session:
        drain(session, pipeline)
        letters = {key for (key,) in connection.execute("select key from pgembed.dead_letters")}
        assert {json.loads(key)[1] for key in letters} == set(long_keys())
        assert retry(connection, pipeline, list(letters)[:2]) == 2
        assert retry(connection, pipeline, slice_records=1) == len(letters) - 2
        connection.execute("update public.reports set body = replace(body, %s, '')", (POISON,))
        drain(session, pipeline)
        assert_converged(connection, "reports")
        assert enqueue(connection, pipeline, Selection()) == 0
        connection.execute("delete from public.reports where slug <> 'short'")
        assert enqueue_deleted(connection, pipeline, slice_records=1) == len(long_keys()) - 1
        drain(session, pipeline)
    assert_converged(connection, "reports")
    assert connection.execute("select count(*) from pgembed.records").fetchone() == (1,)


DOCUMENTS = (
    "",
    "x",
    "\u200b\u200d\ufeff",
    "\u202eright to left\u202c مرحبا بالعالم שלום",
    "\\u0000 \\x00 \\0 %00 &#0;",
    "Ã( \ufffd \udbff".encode("utf-8", "replace").decode(),
    "e" + "\u0301" * 500,
    "👩‍👩‍👧‍👦" * 50,
    "\r\n\x01\x7f\x85\u2028",
    "[SEP][CLS][PAD][MASK]",
    "word " * 100_000,
    "x" * 200_000,
    "字" * 50_000,
)


def test_any_document_is_cut_verbatim(connection: Connection, conninfo: str) -> None:
    make_source(connection, DOCUMENTS)
    pipeline = make_pipeline(connection, chunk_tokens=128)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline, chunker=fake_chunker(128, 20))
    assert connection.execute("select count(*) from pgembed.dead_letters").fetchone() == (0,)
    assert_converged(connection, "reports")


def test_document_of_fifty_megabytes_is_embedded_to_its_end(
    connection: Connection, conninfo: str
) -> None:
    spaces, words = 16_000_000, 400_000
    document = "\u3000" * spaces + "word " * words  # three bytes a space
    assert len(document.encode()) == 50_000_000
    make_source(connection, [document, "a neighbour"])
    pipeline = make_pipeline(connection, chunk_tokens=128)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline, chunker=fake_chunker(128, 20))
    # The oracle lets the server count characters from the front for each of thousands of slices.
    chunks = connection.execute(
        "select text_chunk, start_char, end_char from public.reports_chunks"
        " where fulltext_id = 1 order by chunk_index"
    ).fetchall()
    assert all(document[start:end] == text for text, start, end in chunks)
    assert (chunks[0][1], chunks[-1][2]) == (spaces, len(document) - 1)
    assert all(later[1] <= earlier[2] + 1 for earlier, later in pairwise(chunks))


CONDITIONS = (
    "",
    "id =",
    "id = 1)",
    "id = 1); drop table reports; --",
    "true) or (true",
    "id = 'one'",
    "nothing = 1",
    "count(*) > 1",
    "id",
    "id = 1; select 1",
    "/*",
    "'",
    '"',
    "\\",
    "$$",
    "id = %s",
    "id = {id}",
    "id in (select id from nowhere)",
)


@pytest.mark.parametrize("where", CONDITIONS)
def test_condition_that_is_none_is_refused_and_queues_nothing(
    connection: Connection, where: str
) -> None:
    pipeline = make_pipeline(connection, make_source(connection, texts(3)))
    with pytest.raises(UsageError) as raised:
        enqueue(connection, pipeline, Selection(where=where))
    assert "\n" not in str(raised.value)
    for table in ("work", "scans"):
        left = connection.execute(f"select count(*) from pgembed.{table}").fetchone()
        assert left == (0,)
    assert connection.execute("select count(*) from public.reports").fetchone() == (3,)


def create(conninfo: str, *arguments: str) -> Ran:
    usual = ["--source-table", "reports", "--id-field", "id", "--text-field", "body"]
    return pgembed(conninfo, "create", "reports", *usual, *arguments)


REFUSED = (
    ("--model", "{folder}"),
    ("--model", "{folder}/absent"),
    ("--target-table", "reports"),
    ("--target-table", "nowhere.vectors"),
    ("--target-table", "x" * 64),
    ("--target-table", "a%b"),
    ("--text-field", "nothing"),
    ("--id-field", "nothing"),
    ("--source-table", "nothing"),
    ("--source-table", "a.b.c"),
    ("--vector-type", "bit"),
    ("--chunk-size", "0"),
    ("--chunk-size", "100000"),
    ("--overlap-tokens", "-1"),
    ("--max-attempts", "0"),
    ("--where", "id ="),
)


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_create_refuses_in_one_line_and_makes_nothing(
    connection: Connection, conninfo: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    make_source(connection, texts(3))
    tables = "select count(*) from pg_class where relkind = 'r'"
    before = connection.execute(tables).fetchone()
    ran = create(conninfo, *(each.format(folder=tmp_path) for each in arguments))
    assert ran.exit_code in (1, 2)
    if ran.error is not None:
        assert "\n" not in ran.error.strip()
    assert "Traceback" not in ran.stderr + ran.stdout
    assert "password" not in ran.stderr + str(ran.error)
    assert connection.execute(tables).fetchone() == before
    assert connection.execute("select count(*) from pgembed.pipelines").fetchone() == (0,)


def test_name_with_a_line_in_it_makes_one_line_of_error(
    conninfo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "no\nthing\x1b[31m"
    arguments = ["create", "reports", "--source-table", name]
    monkeypatch.setenv("PGEMBED_DSN", conninfo)
    monkeypatch.setattr(sys, "argv", ["pgembed", *arguments])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "\x1b" not in printed
    assert "public.no thing" in printed


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_lease_that_no_server_takes_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="--lease"):
        WorkerSettings(lease_seconds=seconds)
