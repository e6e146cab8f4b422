"""The oracle: whether a pipeline has kept its promise, asked of the database alone.

It says in SQL of its own what the design promises, and shares no query with the program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from pgqueue_embed.db.session import Connection

Names = dict[str, sql.Composable]

# Each promise with a query for what breaks it. `source` and `ledger` are listed for all of them:
# the records as they are now with their hash, and the ledger rows of the pipeline.
COMMON = """
with source as (
    select
        {source_key} as key,
        {text} as document,
        {hash} as hash
    from {source} as source
    where {source_key} is not null and {where}
),
ledger as (
    select
        coalesce(long_key, key) as key, state, generation, document_hash, chunks, attempts,
        failed_hash, last_error, embedded_at, dead_at
    from pgembed.records
    where pipeline_id = {pipeline_id}
),
target as (
    {chunks}
)
"""

CHUNKS_OF_A_TABLE = """
select
    {target_key} as key,
    {chunk_id} as chunk_id,
    {chunk_index} as chunk_index,
    {text_chunk} as text_chunk,
    {start_char} as start_char,
    {end_char} as end_char,
    {tokens} as tokens,
    {embedding} as embedding
from {target}
"""

# Where texts are not stored, a hash tells whether it is the slice that was embedded.
CHUNKS_WITHOUT_TEXTS = """
select
    {target_key} as key,
    {chunk_id} as chunk_id,
    {chunk_index} as chunk_index,
    (
        select slice
        from source
        cross join lateral (
            select substr(source.document, {start_char} + 1, {end_char} - {start_char}) as slice
        ) as sliced
        where source.key = {target_key}
            and substr(sha256(convert_to(slice, 'UTF8')), 1, 16) = {text_hash}
    ) as text_chunk,
    {start_char} as start_char,
    {end_char} as end_char,
    {tokens} as tokens,
    {embedding} as embedding
from {target}
"""

# In a column of the source, the one chunk of a record is its whole document.
CHUNKS_OF_A_COLUMN = """
select
    {source_key} as key,
    {source_key} || '_0' as chunk_id,
    0 as chunk_index,
    {text} as text_chunk,
    0 as start_char,
    length({text}) as end_char,
    1 as tokens,
    {embedding} as embedding
from {source} as source
where {embedding} is not null
"""

BREACHES = {
    "a record has no ledger state": """
        select source.key, ledger.state
        from source left join ledger using (key)
        where ledger.state is null
    """,
    "the ledger knows a record that the source does not have": """
        select ledger.key, ledger.state
        from ledger left join source using (key)
        where source.key is null
    """,
    "the ledger's hash is not that of the current document": """
        select source.key, ledger.state
        from source join ledger using (key)
        where ledger.document_hash is distinct from source.hash
    """,
    "the state does not fit the text": """
        select source.key, ledger.state, source.document
        from source join ledger using (key)
        where ledger.state = 'embedded' and coalesce(source.document, '') !~ '\\S'
            or ledger.state = 'empty' and source.document ~ '[[:alnum:]]'
    """,
    "the ledger and the target count different chunks": """
        select ledger.key, ledger.chunks, count(target.key)
        from ledger left join target using (key)
        group by ledger.key, ledger.chunks
        having count(target.key) <> ledger.chunks
    """,
    "an embedded record has no chunks, or another one has some": """
        select key, state, chunks from ledger where (state = 'embedded') <> (chunks > 0)
    """,
    "a chunk belongs to no embedded record": """
        select target.key, target.chunk_index
        from target left join ledger on ledger.key = target.key and ledger.state = 'embedded'
        where ledger.key is null
    """,
    "chunk indexes are not 0, 1, 2 …": """
        select key, array_agg(chunk_index order by chunk_index)
        from target
        group by key
        having min(chunk_index) <> 0
            or max(chunk_index) <> count(*) - 1
            or count(distinct chunk_index) <> count(*)
    """,
    "a chunk is not the slice of the document that it says": """
        select target.key, target.chunk_index, target.text_chunk
        from target join source using (key)
        where target.start_char < 0
            or target.end_char <= target.start_char
            or target.text_chunk is distinct from substr(
                source.document, target.start_char + 1, target.end_char - target.start_char
            )
    """,
    "a chunk has no tokens, or an id that is not its own": """
        select key, chunk_id, tokens
        from target
        where tokens < 1
            or chunk_id !~ ('_' || chunk_index || '$')
            or (octet_length(key) <= 500 and chunk_id <> key || '_' || chunk_index)
    """,
    "a failed attempt is charged to a record that succeeded": """
        select key, attempts, last_error
        from ledger
        where state <> 'dead'
            and (attempts > 0 or failed_hash is not null or last_error is not null)
    """,
    "a dead letter has no error or no attempt": """
        select key, attempts, last_error
        from ledger
        where state = 'dead' and (attempts < 1 or coalesce(last_error, '') = '')
    """,
    "a vector is not finite or not of length 1": """
        select key, chunk_index, embedding
        from target
        where abs(sqrt((
            select sum(element::double precision ^ 2)
            from unnest(string_to_array(trim(embedding::text, '[]'), ',')) as element
        )) - 1) > 1e-3
    """,
    "work is left": """
        select id, keys[1], records, available_at
        from pgembed.work
        where pipeline_id = {pipeline_id}
    """,
    "attempts are left": """
        select attempts.id, work_id, died_at from pgembed.attempts
    """,
}

# Those of the breaches that are never to be seen, however much is still to be done.
ALWAYS = (
    "an embedded record has no chunks, or another one has some",
    "chunk indexes are not 0, 1, 2 …",
    "a dead letter has no error or no attempt",
    "a vector is not finite or not of length 1",
)

PROGRESS = """
select
    progress.*,
    (select count(*) from source) as records,
    (select count(*) from ledger where state = 'dead') as dead_records
from pgembed.progress
where progress.pipeline = {name}
"""


def assert_converged(connection: Connection, pipeline_name: str) -> None:
    """Fail unless everything is done and every record of the pipeline is as promised.

    Each source key is in exactly one ledger state; its chunks are verbatim slices of its current
    text, numbered from 0, with vectors of length 1; nothing is pending, and no trace of anything
    else is left. To be called when nothing works on the pipeline any more.
    """
    breaches = list(_breaches(connection, _names(connection, pipeline_name)))
    assert not breaches, f"pipeline {pipeline_name}:\n" + "\n".join(breaches)


def assert_consistent(connection: Connection, pipeline_name: str) -> None:
    """Fail unless what is stored of the pipeline is whole, though work may be left."""
    breaches = list(_breaches_of(connection, _names(connection, pipeline_name), ALWAYS))
    assert not breaches, f"pipeline {pipeline_name}:\n" + "\n".join(breaches)


def _breaches(connection: Connection, names: Names) -> Iterator[str]:
    yield from _breaches_of(connection, names, BREACHES)
    yield from _progress_breaches(connection, names)


def _breaches_of(connection: Connection, names: Names, promises: Iterable[str]) -> Iterator[str]:
    # In one statement, for which the records and their hashes are computed once.
    queries = [
        sql.SQL("select {} as promise, to_jsonb(breach) as breach from ({}) as breach").format(
            sql.Literal(promise), sql.SQL(BREACHES[promise]).format(**names)
        )
        for promise in promises
    ]
    statement = sql.SQL(COMMON).format(**names) + sql.SQL(" union all ").join(queries)
    found: dict[str, list[Any]] = {}
    for promise, breach in connection.execute(statement):
        found.setdefault(promise, []).append(breach)
    for promise, breaches in found.items():
        yield f"- {promise}: {len(breaches)}, such as {breaches[:3]}"


def _progress_breaches(connection: Connection, names: Names) -> Iterator[str]:
    cursor = connection.cursor(row_factory=dict_row)
    progress: dict[str, Any] = (
        cursor.execute(sql.SQL(COMMON + PROGRESS).format(**names)).fetchone() or {}
    )
    records, dead = progress["records"], progress["dead_records"]
    expected = {
        "total": records,
        "done": records - dead,
        "dead": dead,
        "pending": 0,
        "in_flight": 0,
        "retrying": 0,
        "percent": Decimal(1000 * (records - dead) // max(records, 1)) / 10,
    }
    for column, value in expected.items():
        if progress[column] != value:
            yield f"- pgembed.progress says {column} = {progress[column]}, not {value}"


def _names(connection: Connection, pipeline_name: str) -> Names:
    cursor = connection.cursor(row_factory=dict_row)
    row = cursor.execute(
        "select * from pgembed.pipelines where name = %s", (pipeline_name,)
    ).fetchone()
    assert row is not None, f"there is no pipeline {pipeline_name}"
    columns = row["target_columns"]
    target_key = columns.pop("fulltext_id")
    names: Names = {
        **{meaning: sql.Identifier(column) for meaning, column in columns.items()},
        "source_key": _key([column["name"] for column in row["key_columns"]]),
        "target_key": _key(target_key),
        "text": _document(row),
        "hash": _hash(row),
        "where": sql.SQL(row["where_condition"] or "true"),
        "source": sql.Identifier(row["source_schema"], row["source_table"]),
        "target": sql.Identifier(row["target_schema"], row["target_table"]),
        "pipeline_id": sql.Literal(row["id"]),
        "name": sql.Literal(pipeline_name),
    }
    of_table = CHUNKS_OF_A_TABLE if row["text"] else CHUNKS_WITHOUT_TEXTS
    if not row["ids"]:
        key = names["target_key"]
        names["chunk_id"] = sql.SQL("{} || '_' || {}").format(key, names["chunk_index"])
    kind = of_table if row["into_column"] is None else CHUNKS_OF_A_COLUMN
    return {**names, "chunks": sql.SQL(kind).format(**names)}


def _key(names: list[str]) -> sql.Composable:
    """Return a key as text: of one column its own, of several a list; null if any column is."""
    columns = [sql.Identifier(name) for name in names]
    if len(columns) == 1:
        return sql.SQL("{}::text").format(columns[0])
    return sql.SQL("case when num_nulls({0}) = 0 then json_build_array({0})::text end").format(
        sql.SQL(", ").join(columns)
    )


def _document(row: dict[str, Any]) -> sql.Composable:
    """Return the text of a record; templates of tests hold no more than ``$a`` and plain text."""
    if row["template"] is None:
        return _fields(row["text_fields"])
    text: sql.Composable = sql.Literal(row["template"])
    for column in sorted(row["document_columns"], key=lambda column: -len(column["name"])):
        text = sql.SQL("replace({}, {}, coalesce({}::text, ''))").format(
            text, sql.Literal("$" + column["name"]), sql.Identifier(column["name"])
        )
    fields = _fields([column["name"] for column in row["document_columns"]])
    return sql.SQL("case when {} ~ '\\S' then {} else '' end").format(fields, text)


def _fields(names: list[str]) -> sql.Composable:
    columns = [sql.SQL("{}::text").format(sql.Identifier(name)) for name in names]
    if len(columns) == 1:
        return columns[0]
    return sql.SQL("array_to_string(array_remove(array[{}], ''), E'\\n\\n')").format(
        sql.SQL(", ").join(columns)
    )


def _hash(row: dict[str, Any]) -> sql.Composable:
    """Return the hash of a record; chunk templates of tests are ``<$column>: $chunk``."""
    hashed = sql.SQL("sha256(convert_to(coalesce({}, ''), 'UTF8'))").format(_document(row))
    others: list[sql.Composable] = []
    if row["chunk_template"] is not None:
        before, after = row["chunk_template"].split("$chunk")
        column = before.removeprefix("<$").removesuffix(">: ")
        context = sql.SQL("array['<' || coalesce({}::text, '') || '>: ', {}]").format(
            sql.Identifier(column), sql.Literal(after)
        )
        others.append(context)
    if row["copied_columns"]:
        others.append(_copied(row["copied_columns"]))
    if not others:
        return hashed
    parts = [sql.SQL("sha256(convert_to({}::text, 'UTF8'))").format(other) for other in others]
    return sql.SQL("sha256({})").format(sql.SQL(" || ").join([hashed, *parts]))


def _copied(columns: list[dict[str, str]]) -> sql.Composable:
    """Return the list of the copied columns; those of tests have types that no setting alters."""
    texts = [sql.SQL("{}::text").format(sql.Identifier(column["name"])) for column in columns]
    return sql.SQL("array[{}]").format(sql.SQL(", ").join(texts))
