"""Search by words: the one place that ranks chunks by a query's words, by BM25.

An index of pg_textsearch ranks by itself. Else it is done in SQL, over PostgreSQL's own GIN index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgqueue_embed.db.packed import PackedArray
from pgqueue_embed.db.steps import Rows, Step, Steps
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.untrusted.shell import command

# So many chunks are scored: those of the rarest terms, and of all terms together.
CANDIDATES = 500

# The indexes of words, as pgembed.lexical_scan calls them.
GIN = "gin"
PG_TEXTSEARCH = "pg_textsearch"

# Until `evaluate` has found another one.
USUAL_WEIGHT = 0.5

READY = """
select pgembed.lexical_scan(pipelines), lexical, coalesce(lexical_weight, %s)
from pgembed.pipelines
where id = %s
"""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """By which index the words of a pipeline are searched for, and their weight, 0 to 1."""

    scan: str
    weight: float


def ready(pipeline: Pipeline) -> Steps[Ready]:
    """Read what hybrid searches of the pipeline go by.

    Raises UsageError where its words are not indexed, or not yet.
    """
    rows = yield Step(READY, (USUAL_WEIGHT, pipeline.id))
    scan, is_declared, weight = rows[0] if rows else (None, False, USUAL_WEIGHT)
    if scan is not None:
        return Ready(scan=scan, weight=float(weight))
    if pipeline.spec.into_column is not None:
        raise UsageError(
            f"--hybrid belongs to a target table; {pipeline.name} has its vectors in a column of"
            f" {pipeline.source}"
        )
    if not pipeline.spec.text:
        raise UsageError(
            f"--hybrid: {pipeline.name} stores no texts whose words could be indexed; a next"
            f" generation does: {command('alter', pipeline.name, '--text')}"
        )
    build = command("index", pipeline.name, "--lexical")
    if is_declared:
        raise UsageError(
            f"--hybrid: the words of {pipeline.name} are not indexed yet; a worker does it once the"
            f" queue has drained, or you: {build}"
        )
    raise UsageError(f"--hybrid: the words of {pipeline.name} are not indexed; do it: {build}")


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What BM25 says of a query's terms, rarest first; in `chunks` chunks each of them is."""

    terms: list[str]
    chunks: list[float]
    weights: list[float]
    average_bytes: float

    def is_any(self) -> str:
        """Return the tsquery of the chunks with any of the rarest terms, as many as are scored."""
        total = 0.0
        chosen: list[str] = []
        for term, chunks in zip(self.terms, self.chunks, strict=True):
            total += chunks
            if chosen and total > CANDIDATES:
                break
            chosen.append(_quoted(term))
        return " | ".join(chosen)

    def are_all(self) -> str:
        """Return the tsquery of the chunks with all terms."""
        return " & ".join(map(_quoted, self.terms))


def _quoted(term: str) -> str:
    doubled = term.replace("\\", "\\\\").replace("'", "''")
    return f"'{doubled}'"


def _told(words: str) -> str:
    """Return what PostgreSQL can read of words."""
    return words.replace("\x00", " ")


TERMS = """
select term, chunks, weight, average_bytes
from pgembed.pipelines
cross join lateral pgembed.lexical_terms(pipelines, %s)
where id = %s
order by chunks, term
"""


def _terms(pipeline: Pipeline, words: str) -> Steps[_Terms | None]:
    rows = yield Step(TERMS, (_told(words), pipeline.id))
    if not rows:
        return None
    terms, chunks, weights, lengths = zip(*rows, strict=True)
    return _Terms(
        terms=list(terms), chunks=list(chunks), weights=list(weights), average_bytes=lengths[0]
    )


def ranked_by_words(
    pipeline: Pipeline, statement: str, vector: PackedArray, words: str, count: int, scan: str = GIN
) -> Steps[Rows]:
    """Read the `count` chunks that answer `words` best, by BM25, of those that have any.

    `statement` is pgembed.lexical_statement's for `scan`: rows are as those of
    pgembed.search_statement, but for the last column, which is the higher the better. `vector` is
    the query's, which gives the distance.
    """
    if scan == PG_TEXTSEARCH:
        return (yield from _ranked_by_index(statement, vector, words, count))
    return (yield from _ranked_in_sql(pipeline, statement, vector, words, count))


# Of a text that is longer than questions are, its beginning.
ASKED = """
select pgembed.words(array_to_tsvector(array_agg(lexeme))), array_agg(lexeme)
from (
    select lexeme
    from unnest(pgembed.terms(%s))
    order by positions[1]
    limit 64
) as asked
having count(*) > 0
"""


def _ranked_by_index(statement: str, vector: PackedArray, words: str, count: int) -> Steps[Rows]:
    asked = yield Step(ASKED, (_told(words),))
    if not asked:
        return []
    [(query, terms)] = asked
    has_any = " | ".join(map(_quoted, terms))
    return (yield Step(statement, (vector, count, query, has_any), raw=True))


def _ranked_in_sql(
    pipeline: Pipeline, statement: str, vector: PackedArray, words: str, count: int
) -> Steps[Rows]:
    """Score at most CANDIDATES chunks of those with all words, and as many with the rarest."""
    terms = yield from _terms(pipeline, words)
    if terms is None:
        return []
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    # One set, so that a query of a single term reads once.
    for query in {terms.is_any(), terms.are_all()}:
        values = (vector, count, query, terms.terms, terms.weights, terms.average_bytes, CANDIDATES)
        rows = yield Step(statement, values, raw=True)
        found.update({row[:5]: row for row in rows})
    best = sorted(found.values(), key=lambda row: (-row[-1], row[0], row[1] or 0))
    return best[:count]
