"""The text of a chunk that is not stored: read from the document, if it stands there still.

Beside where it stands, a row has a hash of it. So a text that is shown is the one that was
embedded, whatever has become of its record, of the ledger, or of the table since.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.pipeline.document import Document
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.target.chunks import column_names

# Half a SHA-256: another text for one cannot be found, and it is stored for every chunk.
HASH_BYTES = 16

# A scalar subquery is computed for the rows of a LIMIT alone, and in no index's way. OFFSET keeps
# the document from being read for the hash and for the text. A row may have been written by hand.
TEXT = """(
    select passage
    from (
        select substr({document}, {start} + 1, greatest({end} - {start}, 0)) as passage
        from {source} as source
        where {source_key} = {target_key}
        offset 0
    ) as present
    where {hash} = {text_hash}
    limit 1
)"""


@dataclass(frozen=True, kw_only=True)
class ChunkText:
    """How the text of a row ``target`` with `columns` is read from its record in `source`."""

    source: Table
    key: Key
    document: Document
    columns: TargetColumns

    @property
    def query(self) -> sql.Composable:
        """A scalar subquery, null where the document has another text in that place by now."""
        columns = self.columns
        return sql.SQL(TEXT).format(
            document=self.document.text("source"),
            start=sql.Identifier("target", columns.start_char),
            end=sql.Identifier("target", columns.end_char),
            source=self.source.identifier,
            source_key=self.key.of("source"),
            target_key=self.key.of("target", columns.fulltext_id),
            hash=hash_of(sql.SQL("passage")),
            text_hash=sql.Identifier("target", columns.text_hash),
        )

    def rows(self, table: Table) -> sql.Composable:
        """Return what to select the chunks of `table` from, with their texts."""
        return sql.SQL("(select target.*, {text} as {text_chunk} from {table} as target)").format(
            text=self.query, table=table.identifier, **column_names(self.columns)
        )


def hash_of(text: sql.Composable) -> sql.Composable:
    """Return the hash of a text in the database."""
    return sql.SQL("substr(sha256(convert_to({}, 'UTF8')), 1, {})").format(text, HASH_BYTES)


def hash_of_text(text: str) -> bytes:
    """Return the hash of a text, HASH_BYTES long."""
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]
