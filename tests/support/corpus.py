"""Source tables with short texts of many kinds."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection

MAUDE_SAMPLE = Path(__file__).parents[1] / "data" / "maude_sample.csv.gz"

SENTENCES = (
    "The infusion pump stopped and an alarm was heard. Nobody was hurt.",
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。患者没有受到伤害！",
    "Das Gerät wurde geprüft; ein Ventil war verstopft, 'außen' und \"innen\".",
    "Устройство перестало работать. ポンプが停止しました。 펌프가 멈췄습니다.",
    "Temperature\u00a037 °C 🙂 naïve co\u00f6peration [SEP] 100 % {braces} \\backslash\ttab.",
    "A short one.",
    "Alarm code 0xDEAD was logged at 03:14.\n\nThe device was returned; no fault was found.",
)

# For each supported type of a source key: SQL that makes the key of the record with number n.
KEY_OF_NUMBER = {
    "smallint": "n::smallint",
    "integer": "n::integer",
    "bigint": "n::bigint",
    "uuid": "md5(n::text)::uuid",
    "text": "'key/' || n || ' ''ü\"'",
    "date": "date '1999-12-25' + n::integer",
    "timestamptz": "timestamptz '2024-03-31 00:00:00+00' + n * interval '17 minutes 3.25 seconds'",
}


def texts(count: int, *, chunks: int = 1) -> list[str]:
    """Return `count` different texts; with the 16 tokens of the fakes, of about `chunks` chunks."""
    return [_text(number, chunks) for number in range(1, count + 1)]


def _text(number: int, chunks: int) -> str:
    sentences = [SENTENCES[(number + step) % len(SENTENCES)] for step in range(chunks)]
    return f"Report {number}. {' '.join(sentences)}"


def real_reports() -> list[str]:
    """Return 2,000 reports of the FDA's MAUDE files."""
    with gzip.open(MAUDE_SAMPLE, "rt", encoding="utf-8", newline="") as file:
        return [row["foi_text"] for row in csv.DictReader(file)]


def make_source(
    connection: Connection,
    documents: Iterable[str | None] = (),
    *,
    table: str = "reports",
    schema: str = "public",
    id_field: str = "id",
    text_field: str = "body",
    key_type: str = "bigint",
) -> Table:
    """Create a source table with `documents` in it, keyed 1, 2, … (or see `KEY_OF_NUMBER`)."""
    source = Table(schema=schema, name=table)
    names = {
        "table": sql.Identifier(schema, table),
        "id": sql.Identifier(id_field),
        "text": sql.Identifier(text_field),
    }
    connection.execute(
        sql.SQL("create table {table} ({id} {key_type} primary key, {text} text)").format(
            **names, key_type=sql.SQL(key_type)
        )
    )
    fill = sql.SQL(
        "insert into {table} ({id}, {text})"
        " select {key}, document from unnest(%s::text[]) with ordinality as d (document, n)"
    )
    key = sql.SQL(KEY_OF_NUMBER[key_type])
    connection.execute(fill.format(**names, key=key), (list(documents),))
    return source


def set_text(
    connection: Connection, table: Table, key: object, document: str | None, *, id_field: str = "id"
) -> None:
    """Insert or change one record of a table with the columns ``id`` and ``body``."""
    query = sql.SQL(
        "insert into {table} ({id}, body) values (%s, %s)"
        " on conflict ({id}) do update set body = excluded.body"
    ).format(table=sql.Identifier(table.schema, table.name), id=sql.Identifier(id_field))
    connection.execute(query, (key, document))


def delete_records(connection: Connection, table: Table, keys: Sequence[object]) -> None:
    """Delete records of a table whose key column is ``id``."""
    query = sql.SQL("delete from {} where id = any(%s)")
    connection.execute(query.format(sql.Identifier(table.schema, table.name)), (list(keys),))
