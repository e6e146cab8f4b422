"""The index of a pipeline's words: whether it is there, and how it is built.

One of pg_textsearch where that can be used, else PostgreSQL's own GIN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target.parts import leaves
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.vector_search.index import shortened
from pgqueue_embed.vector_search.index_build import Build, build_once, ignore, long_statements
from pgqueue_embed.vector_search.lexical import GIN, PG_TEXTSEARCH
from pgqueue_embed.vector_search.textsearch import find_textsearch

HAS = "select pgembed.has_lexical_index(pipelines) from pgembed.pipelines where id = %s"


def has_lexical_index(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether hybrid searches can be made."""
    return bool(connection.value(HAS, (pipeline.id,)))


INDEXES = """
select listed.scan, listed.name
from pgembed.pipelines
cross join pgembed.lexical_indexes(pipelines) as listed
where id = %s
"""


def lexical_indexes(connection: Connection, pipeline: Pipeline) -> dict[str, str]:
    """Return the name of an index of words by what it is of, the one that is preferred first."""
    rows = connection.execute(INDEXES, (pipeline.id,)).fetchall()
    found: dict[str, str] = {}
    for scan, name in rows:
        found.setdefault(scan, name)
    return found


def wanted_index(connection: Connection, pipeline: Pipeline) -> str:
    """Return which index of words is to be built: PG_TEXTSEARCH or GIN."""
    extension = find_textsearch(connection, pipeline)
    return GIN if extension is None or extension.why_not is not None else PG_TEXTSEARCH


def build_lexical_index(
    connection: Connection, pipeline: Pipeline, *, on_warning: Callable[[str], None] = ignore
) -> str:
    """Build the index of words while reads and writes go on, and return its name.

    Interrupted, it is begun anew by the next call, or goes on with the part at which it stopped.
    Raises as `build_index` and `check_has_texts` do.
    """
    check_has_texts(pipeline)
    kind = KINDS[wanted_index(connection, pipeline)]
    build = LexicalBuild(connection, pipeline, on_warning, kind)
    # pg_textsearch notices that it begins and ends, which is no warning.
    with long_statements(connection, {"client_min_messages": "warning"}):
        name = build_once(build)
        # How common a term is, is known from then on.
        analyze = sql.SQL("analyze {}").format(pipeline.target.identifier)
        connection.execute(analyze)
    return name


def check_has_texts(pipeline: Pipeline) -> None:
    """Raise UsageError unless the pipeline stores the texts of its chunks, which can be indexed."""
    if pipeline.spec.into_column is not None:
        raise UsageError(
            f"--lexical belongs to a target table; {pipeline.name} has its vectors in a column of"
            f" {pipeline.source}"
        )
    if not pipeline.spec.text:
        raise UsageError(
            f"--lexical indexes the words of texts that are stored, and {pipeline.name} stores"
            f" none; a next generation does: {command('alter', pipeline.name, '--text')}"
        )


@dataclass(frozen=True)
class Kind:
    """How an index of words is named and made, by an access method, of what `function` says."""

    suffix: str
    method: str
    function: str
    create: str


KINDS = {
    GIN: Kind(
        "lexical",
        "gin",
        "pgembed.terms(text)",
        "{create} {name} on {table} using gin (pgembed.terms({text_chunk}))",
    ),
    PG_TEXTSEARCH: Kind(
        "bm25",
        "bm25",
        "pgembed.words(tsvector)",
        "{create} {name} on {table} using bm25 (pgembed.words(pgembed.terms({text_chunk})))"
        " with (text_config = 'pg_catalog.simple')",
    ),
}

LACKS_INDEX = """
not exists (
    select
    from pg_index
    join pg_class as index on index.oid = indexrelid
    join pg_am on pg_am.oid = index.relam
    join pg_depend
        on classid = 'pg_class'::regclass
        and objid = indexrelid
        and refclassid = 'pg_proc'::regclass
        and refobjid = %(function)s::regprocedure
    where indrelid = relid
        and indisvalid
        -- One of words is one of terms, too.
        and amname = %(method)s
)
"""


@dataclass(frozen=True)
class LexicalBuild(Build):
    """Builds the index of a pipeline's words."""

    kind: Kind

    def name_of(self, table: Table) -> str:
        """Return the name of the index of `table`, the same everywhere."""
        return shortened(f"{table.name}_{self.pipeline.spec.columns.text_chunk}", self.kind.suffix)

    def parts_without(self) -> list[Table]:
        """Return the parts that lack it."""
        values = {"function": self.kind.function, "method": self.kind.method}
        return leaves(self.connection, self.pipeline.target, LACKS_INDEX, values)

    def creation(self, table: Table, name: str, create: sql.SQL) -> sql.Composed:
        """Return the statement that builds that of one table."""
        return sql.SQL(self.kind.create).format(
            create=create,
            name=sql.Identifier(name),
            table=table.identifier,
            text_chunk=sql.Identifier(self.pipeline.spec.columns.text_chunk),
        )
