"""The extension pg_textsearch: whether it is in a database, and can index a pipeline's words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline

# The oldest that was tested. 1.0 has no indexes of expressions, and until 1.3 what was written last
# was in memory alone, and gone after a crash.
LEAST_VERSION = (1, 5)


@dataclass(frozen=True, kw_only=True)
class Textsearch:
    """pg_textsearch as it is created in a database.

    `why_not` says why it cannot index the words of a pipeline, None where it can.
    """

    version: str
    why_not: str | None


FIND = """
select
    extversion,
    current_setting('pg_textsearch.library_version', true) is not null,
    coalesce((select relrowsecurity from pg_class where oid = to_regclass(%s)), false)
from pg_extension
where extname = 'pg_textsearch'
"""


def find_textsearch(connection: Connection, pipeline: Pipeline) -> Textsearch | None:
    """Return the extension for the words of `pipeline`, or None if it is not created here."""
    row = connection.execute(FIND, (pipeline.target.quoted,)).fetchone()
    if row is None:
        return None
    version, is_loaded, has_policies = row
    return Textsearch(version=version, why_not=_why_not(version, is_loaded, has_policies))


def _why_not(version: str, is_loaded: bool, has_policies: bool) -> str | None:
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_VERSION:
        return f"pg_textsearch {version} is too old; it is used from 1.5 on"
    if not is_loaded:
        return "pg_textsearch is not in shared_preload_libraries"
    if has_policies:
        return (
            "pg_textsearch is not used for a table with row-level security: whoever asks it learns"
            " how common a term is"
        )
    return None
