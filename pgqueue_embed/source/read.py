"""Relations that yield the records of the source: key, text, hash.

The document of a record and its hash come from one SQL expression, evaluated by the server, so
that text and hash cannot disagree and unchanged text never leaves the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pgqueue_embed.db.faults import naming_the_record, on_users_tables
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineFault, UntrustedCode
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import check_trust_often, trusting
from pgqueue_embed.target import target_of

if TYPE_CHECKING:
    from pgqueue_embed.chunking import Context


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One record as read before the model runs; all of it a hint until the mutex is held.

    `document` is None where the text was not fetched: the record is unchanged, or it lies
    beyond the bytes that this claim takes. `context` is what goes around its chunks, if anything.
    `has_vectors` says that the target has chunks of an older text of it.
    """

    key: str
    document: str | None
    context: Context | None = None
    document_hash: bytes
    unchanged: bool
    has_vectors: bool
    beyond_limit: bool


def source_names(pipeline: Pipeline) -> dict[str, sql.Composable]:
    """Return the SQL names and expressions of a pipeline that statements over its source share.

    Their aliases are ``source``, ``target``, and ``listed`` for keys of the queue; the parameter of
    `key_is_among_keys` is ``keys``. NULL and empty text have one hash. Such a statement must be
    executed with parameters, if only with none: a % of the user's is doubled in it.
    """
    key = pipeline.key
    target_key = pipeline.spec.columns.fulltext_id
    return {
        "source": relation(pipeline),
        "target": target_of(pipeline).rows,
        "source_key": key.of("source"),
        "source_key_text": key.text("source"),
        "source_present": key.present("source"),
        "key_is_among_keys": key.among("source", key.names),
        "target_key": key.of("target", target_key),
        "target_key_text": key.text("target", target_key),
        "listed_key": key.value(sql.SQL("listed.key")),
        "and_chunk_is_of_listed": and_chunk_is_of(pipeline, sql.SQL("listed.key")),
        "document": pipeline.document.text("source"),
        "context": pipeline.document.context("source"),
        "document_hash": pipeline.document.hash("source"),
        "excluded": _excluded(pipeline),
    }


def _excluded(pipeline: Pipeline) -> sql.Composable:
    """Return whether a listed key that is not among the records is that of a row all the same."""
    if pipeline.spec.where is None:
        return sql.SQL("false")
    key = pipeline.key
    return sql.SQL("exists (select from {table} as source where {key} = {listed})").format(
        table=pipeline.source.identifier,
        key=key.of("source"),
        listed=key.value(sql.SQL("listed.key")),
    )


# A chunk that came to its key with a foreign key's `on update cascade` was made for another record:
# with another text, or, where the texts are equal, still with the id of that one.
CHUNK_IS_OF = (
    "and target.{chunk_id} = pgembed.ledger_key({key_text}) || '_' || target.{chunk_index}"
)


def and_chunk_is_of(pipeline: Pipeline, key_text: sql.Composable) -> sql.Composable:
    """Return the rest of a condition: chunk ``target`` was made for the key with `key_text`."""
    if not pipeline.spec.foreign_key:
        return sql.SQL("")
    return sql.SQL(CHUNK_IS_OF).format(
        chunk_id=sql.Identifier(pipeline.spec.columns.chunk_id),
        chunk_index=sql.Identifier(pipeline.spec.columns.chunk_index),
        key_text=key_text,
    )


def relation(pipeline: Pipeline, where: str | None = None) -> sql.Composable:
    """Return what to select from: the source, or its rows that match the pipeline's and `where`.

    The conditions stand apart, where no name but the source's can be meant by them.
    """
    table = pipeline.source.identifier
    conditions = [each for each in (pipeline.spec.where, where) if each is not None]
    if not conditions:
        return table
    return sql.SQL("(select {columns} from {table} as source where {conditions})").format(
        columns=sql.SQL(", ").join(column.of("source") for column in pipeline.source_columns),
        table=table,
        conditions=sql.SQL(" and ").join(
            sql.SQL("({}\n)").format(condition(each)) for each in conditions
        ),
    )


def condition(where: str) -> sql.Composable:
    """Return a user's own condition as SQL, in which a % is not a placeholder of ours."""
    return sql.SQL(where.replace("%", "%%"))


# The listed keys with their records, the hint whether anything is to be done, and as many
# documents as fit the byte limit (the first one always does). The length of a stored text is
# known without reading it. The ledger is looked up key by key: joined as a table, with statistics
# from when it was young, it is read as a whole for every key. That the keys are given as a list too
# spares the other rows of a view that computes with a volatile function.
READ = """
with listed as (
    select key, embed_again, position
    from unnest(%(keys)s::text[], %(embed_again)s::boolean[])
        with ordinality as listed (key, embed_again, position)
),
hashed as (
    select
        listed.key,
        listed.embed_again,
        listed.position,
        {document} as document,
        {context} as context,
        {document_hash} as document_hash
    from listed
    join {source} as source on {source_key} = {listed_key}
    where {key_is_among_keys}
),
hinted as (
    select
        listed.*,
        case
            when ledger.key is null or listed.embed_again then false
            when ledger.document_hash is distinct from listed.document_hash then false
            when ledger.generation is distinct from %(generation)s then false
            when ledger.state = 'empty' then true
            when ledger.state = 'embedded' then ledger.chunks = (
                select count(*)
                from {target} as target
                where {target_key} = {listed_key} {and_chunk_is_of_listed}
            )
            else false
        end as unchanged,
        coalesce(
            ledger.state = 'embedded' and ledger.generation = %(generation)s, false
        ) as has_vectors
    from hashed as listed
    left join lateral (
        select key, state, generation, document_hash, chunks
        from pgembed.records
        where pipeline_id = %(pipeline_id)s and records.key = pgembed.ledger_key(listed.key)
        limit 1
    ) as ledger on true
),
measured as (
    select
        hinted.*,
        coalesce(
            sum(octet_length(document)) filter (where not unchanged)
                over (order by position rows between unbounded preceding and 1 preceding),
            0
        ) as bytes_before
    from hinted
)
select
    key,
    case when not unchanged and bytes_before <= %(limit_bytes)s then coalesce(document, '') end,
    document_hash,
    unchanged,
    has_vectors,
    not unchanged and bytes_before > %(limit_bytes)s,
    context
from measured
order by position
"""


def read_records(
    connection: Connection,
    pipeline: Pipeline,
    keys: Sequence[str],
    embed_again: Sequence[bool],
    *,
    limit_bytes: int,
) -> list[SourceRecord]:
    """Return the records of `keys` that exist, in that order, with up to `limit_bytes` of text.

    Runs in autocommit, apart from the claim's transaction: nothing of the user's stays locked.
    Raises PipelineFault when source or target cannot be read, and names the record that is the
    cause, if it is one.
    """
    # Numpy and a tokenizer come along, and the source is known to commands that need neither.
    from pgqueue_embed.chunking import Context

    query = sql.SQL(READ).format(**source_names(pipeline))
    values = {
        "keys": list(keys),
        "embed_again": list(embed_again),
        "generation": pipeline.generation,
        "pipeline_id": pipeline.id,
        "limit_bytes": limit_bytes,
    }
    trust = check_trust_often(connection, pipeline)
    doing = f"reading {pipeline.source}"
    try:
        with trust.kept(connection), on_users_tables(connection, doing):
            rows = connection.execute(query, values).fetchall()
    except UntrustedCode:
        raise
    except PipelineFault as error:
        raise with_key(connection, pipeline, error, keys) from None
    return [
        SourceRecord(
            key=key,
            document=text,
            context=None if context is None else Context(*context),
            document_hash=hash_,
            unchanged=unchanged,
            has_vectors=has_vectors,
            beyond_limit=beyond,
        )
        for key, text, hash_, unchanged, has_vectors, beyond, context in rows
    ]


# By a list and not by a join: what a view computes is then computed for these rows alone, even if
# it is by a volatile function.
PROBE = """
select {document_hash}, {context}
from {source} as source
where {key_is_among_keys}
"""


def with_key(
    connection: Connection, pipeline: Pipeline, error: PipelineFault, keys: Sequence[str]
) -> PipelineFault:
    """Return `error`, naming the one of the records `keys` that cannot be read, if it is that."""
    query = sql.SQL(PROBE).format(**source_names(pipeline))

    def probe(some: Sequence[str]) -> None:
        with (
            trusting(connection, pipeline.spec),
            on_users_tables(connection, f"reading {pipeline.source}"),
            connection.transaction(),
        ):
            connection.execute(query, {"keys": list(some)})

    return naming_the_record(error, keys, probe)
