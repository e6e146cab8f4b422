"""The roles of the soak's workers: they have what the documents grant, and nothing else."""

from __future__ import annotations

from pathlib import Path

from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.session import Connection
from tests.support.documents import marked_block

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"

# The second one's right to read the source is taken away now and then.
EMBEDDER = "embedder"
GUEST = "guest"

# What the document's example calls, and what the soak does; the longer names first.
NAMES = {
    "event_text_vectors": "public.reports_chunks",
    "event_text": "public.reports",
    "mdr_text_key": "id",
    "foi_text": "body",
}


def make_role(connection: Connection, role: str) -> None:
    """Create a role and grant it what docs/operations.md says."""
    connection.execute(f"create role {role} login password '{role}'")
    grants = marked_block(OPERATIONS, "privileges: executed by the tests", "sql")
    for documented, own in {**NAMES, "embedder": role}.items():
        grants = grants.replace(documented, own)
    connection.execute(grants)


def as_role(conninfo: str, role: str | None) -> str:
    """Return the connection string of a role; None is the superuser's own."""
    return conninfo if role is None else make_conninfo(conninfo, user=role, password=role)
