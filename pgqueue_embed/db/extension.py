"""The vector extension: its schema and version."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import Step, Steps, run
from pgqueue_embed.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class VectorExtension:
    """pgvector as it is created in a database: `version` is as it calls itself, say ``0.8.1``."""

    schema: str
    version: str

    def is_at_least(self, *numbers: int) -> bool:
        """Return whether it is of version `numbers`, such as 0, 7, or a later one."""
        return tuple(int(part) for part in self.version.split(".")[: len(numbers)]) >= numbers

    @property
    def builds_in_parallel(self) -> bool:
        """Whether several processes can build an HNSW index, and do it without a fault."""
        return self.is_at_least(0, 8, 2)

    def faults(self) -> list[str]:
        """Return the faults of this version that can harm an index, for a person."""
        found = []
        if self.is_at_least(0, 6) and not self.builds_in_parallel:
            found.append(
                "building an HNSW index in parallel can read or write memory out of bounds"
                " (CVE-2026-3172, mended in 0.8.2)"
            )
        if not self.is_at_least(0, 8, 4):
            found.append("a vacuum can damage an HNSW index (mended in 0.8.3 and 0.8.4)")
        return found


FIND = """
select nspname, extversion
from pg_extension
join pg_namespace on pg_namespace.oid = extnamespace
where extname = 'vector'
"""


def find_extension(connection: Connection) -> VectorExtension | None:
    """Return the vector extension of the database, or None if it is not created there."""
    row = connection.execute(FIND).fetchone()
    return VectorExtension(schema=row[0], version=row[1]) if row else None


def vector_extension(connection: Connection) -> VectorExtension:
    """Return the vector extension of the database; raises SetupError where it is not created."""
    return run(connection, extension_read())


def extension_read() -> Steps[VectorExtension]:
    """Do what `vector_extension` does."""
    rows = yield Step(FIND)
    if not rows:
        raise SetupError("the vector extension is not created here; run: pgembed migrate")
    return VectorExtension(schema=rows[0][0], version=rows[0][1])
