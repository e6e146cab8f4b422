"""Semantic search in a pipeline's vectors: the chunks nearest to a query's, in the best order.

What is sent, and how rows are read, is made here once, as steps: `search` sends them over a
session, and a program's own connection of psycopg, of either kind, does as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import is_given_back, on_users_tables
from pgqueue_embed.db.session import Connection, NoAnswer, OutOfTime
from pgqueue_embed.db.steps import AnyConnection, Step, Steps, read_on
from pgqueue_embed.db.vectors import vector_text
from pgqueue_embed.errors import (
    MissingRight,
    PgembedError,
    PipelineFault,
    PipelineReplaced,
    SearchTimeout,
    SetupError,
    UntrustedCode,
    UsageError,
)
from pgqueue_embed.pipeline.catalog import currency_read
from pgqueue_embed.pipeline.columns import raw
from pgqueue_embed.pipeline.key_values import key_of
from pgqueue_embed.pipeline.option import MOST_COUNT
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import trusted
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.fusion import DEPTH, firsts, fused
from pgqueue_embed.vector_search.hit import Candidate, Hit
from pgqueue_embed.vector_search.known import Known
from pgqueue_embed.vector_search.lexical import GIN, ranked_by_words, ready
from pgqueue_embed.vector_search.near import LikeRecord, Near, Origin, origin_of
from pgqueue_embed.vector_search.order import Score, in_better_order, wanted_to_order
from pgqueue_embed.vector_search.reading import (
    COMPARING,
    WHAT_ONE_MAY_SEE,
    read_by,
    reading_chunks,
    why_unreadable,
)
from pgqueue_embed.vector_search.relation import Relation, related
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import OWN_TABLES, with_rights_named

# Settings of this transaction alone; in SQL, since what people call in psql needs them, too.
WIDEN = """
select pgembed.widen_scan(pipelines, %(count)s, %(scan)s)
from pgembed.pipelines
where id = %(id)s
"""

# How many chunks of a record a search for it would find.
MATCHED = """
select {key}, count(*)
from {relation}
where {condition} and {key_is_among_keys} and 1 - {distance} >= $2
group by 1
"""

# A condition is a person's own SQL, which may change nothing and not run for ever. Nor may a
# search by words, of a role whose policies keep it from the index.
CONDITION_SECONDS = 60

# Where tables are not as they were: of another generation, or of those that were known.
DOUBTED = (PipelineFault, SetupError, UsageError)

# A program that lends its connection may have less patience.
AT_MOST = """
select set_config('statement_timeout', limited.seconds, true)
from (values (%s::text)) as limited (seconds)
where current_setting('statement_timeout')::interval
    not between interval '1 ms' and limited.seconds::interval
"""


def search(
    connection: psycopg.Connection[Any],
    pipeline: Pipeline,
    near: Near,
    request: SearchRequest,
    score: Score | None = None,
    known: Known | None = None,
) -> list[Hit]:
    """Return the chunks that `request` asks for, best first: never fewer than there are.

    They are nearest to a query's vector, of shape (dimensions,), or to a record, which is not found
    itself. With `score` the first of them are ordered by that. Nothing of it stays in the session.
    Raises PipelineReplaced if the next generation, to which the query's vector may mean nothing,
    has just taken over; UsageError for a request that cannot be, NotFound for a record without
    vectors, MissingRight for what may not be read, SetupError for a table that is not there, and
    SearchTimeout for what took too long, or waited too long for a lock.
    """
    request.check()
    wanted = wanted_to_order(request, score)
    found = read_on(connection, nearest(connection, pipeline, near, wanted, known))
    return in_better_order(found, request, score)


def nearest(
    connection: AnyConnection,
    pipeline: Pipeline,
    near: Near,
    request: SearchRequest,
    known: Known | None = None,
) -> Steps[list[Hit]]:
    """Read, in a transaction that is rolled back, what `search` finds before it is ordered anew.

    `known` is what may be known of the pipelines of this database already.
    """
    search = _Search(connection, pipeline, near, request)
    known = known or Known()
    try:
        role = yield from _prepare(request)
        relation = known.relation(pipeline, request, role)
        if relation is not None:
            with suppress(*DOUBTED):
                return (yield from search.answered(search.found(relation)))
        return (yield from search.answered(search.looked_at_anew(known, role)))
    except (UntrustedCode, MissingRight):
        raise
    except DOUBTED as error:
        # Of another generation it may not be so: its vectors are others, and have moved.
        yield from check_present(pipeline)
        if not isinstance(error, PipelineFault):
            raise
        why = yield from why_unreadable(pipeline, error)
        raise _refused(pipeline, near, request, error, why) from None
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, OutOfTime) as error:
        if isinstance(error, NoAnswer):
            raise
        says = f"the search did not end in time: {first_line(error)}; ask for less, or try again"
        raise SearchTimeout(says) from None
    except psycopg.Error as error:
        if request.where is None or connection.closed or is_given_back(error):
            raise
        raise UsageError(f"--where cannot be searched by: {first_line(error)}") from None


def _refused(
    pipeline: Pipeline, near: Near, request: SearchRequest, error: PipelineFault, why: str
) -> PgembedError:
    """Return whose fault it is: what was asked for, or the tables, which answer nobody then."""
    says = f"cannot search {pipeline.target}: {why}"
    has_values = request.where is not None or isinstance(near, LikeRecord)
    return UsageError(says) if has_values and not error.is_of_the_table else SetupError(says)


class _Search:
    """A search of a pipeline, in a transaction."""

    def __init__(
        self, connection: AnyConnection, pipeline: Pipeline, near: Near, request: SearchRequest
    ) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._near = near
        self._request = request

    def answered(self, steps: Steps[list[Hit]]) -> Steps[list[Hit]]:
        """Run steps of it; raises MissingRight, after which more can be read."""
        tables = [*OWN_TABLES, *read_by(self._pipeline, self._request)]
        return (yield from with_rights_named(self._connection, tables, steps))

    def looked_at_anew(self, known: Known, role: str) -> Steps[list[Hit]]:
        """Read what is found, once it is known whose code that runs, and by which statement."""
        pipeline, request = self._pipeline, self._request
        reads_source = request.reads_source or not pipeline.spec.text
        trust = yield from trusted(
            pipeline.spec, request.where, searching=True, reads_source=reads_source
        )
        with on_users_tables(self._connection, COMPARING):
            relation = yield from related(self._connection, pipeline, request)
        if relation is None:
            raise _replaced(pipeline)
        if not trust.may_change:
            known.keep(pipeline, request, role, relation)
        return (yield from self.found(relation))

    def found(self, relation: Relation) -> Steps[list[Hit]]:
        """Read what is found; raises PipelineReplaced unless the pipeline is as it was loaded."""
        with on_users_tables(self._connection, COMPARING):
            origin = yield from origin_of(self._pipeline, self._near)
            scan = _Scan(self._pipeline, relation, self._request, origin)
            hits = yield from (_best_of_records(scan) if self._request.per_record else _best(scan))
            yield from check_present(self._pipeline)
            return hits


def _prepare(request: SearchRequest) -> Steps[str]:
    """Limit what the transaction may do and see; returns the role that it is of."""
    [(role, _)] = yield Step(WHAT_ONE_MAY_SEE)
    if request.where is not None:
        yield Step("set local transaction_read_only = on")
    if request.where is not None or request.words is not None:
        yield Step(AT_MOST, (f"{CONDITION_SECONDS}s",))
    return str(role)


class _Scan:
    """The nearest chunks of one query, by the index where there is one, and exactly if need be."""

    def __init__(
        self,
        pipeline: Pipeline,
        relation: Relation,
        request: SearchRequest,
        origin: Origin,
    ) -> None:
        self.request = request
        self._pipeline = pipeline
        self._relation = relation
        self._origin = origin
        self._vector = vector_text(origin.vector)

    def nearest(self, count: int) -> Steps[list[Hit]]:
        """Read the `count` nearest chunks of those that the condition lets in, or all."""
        # The record that others are to be like is the nearest of all.
        own = self._origin.chunks
        while True:
            found = yield from self._nearest(min(count + own, MOST_COUNT))
            others = [hit for hit in found if hit.key_text != self._origin.key_text]
            if len(others) >= count or len(found) - len(others) <= own:
                return others[:count]
            own = len(found) - len(others)  # embedded anew just now, in more chunks

    def _nearest(self, wanted: int) -> Steps[list[Hit]]:
        scan = self._relation.scan
        if scan != "exact":
            yield Step(WIDEN, {"id": self._pipeline.id, "count": wanted, "scan": scan})
        rows = yield self._step(self._relation.statement, wanted)
        # An index gives up at some time: with a rare condition, before it has found them all.
        is_enough = bool(rows) and rows[0][-1]
        if scan != "exact" and not is_enough:
            rows = yield self._step(self._relation.exact_statement, wanted)
        return [self._hit(row) for row in rows]

    def matched(self, keys: Sequence[str]) -> Steps[dict[str, int]]:
        """Read how many chunks of each record reach the threshold."""
        key = self._pipeline.key
        key_names = [f"pgembed_{name}" for name in key.positions]
        query = MATCHED.format(
            key=self._relation.key,
            relation=self._relation.relation,
            condition=f"({self.request.where or 'true'}\n)",
            distance=self._relation.distance,
            key_is_among_keys=raw(key.among("chunk", key_names, "keys")).replace("%(keys)s", "$3"),
        )
        return dict((yield self._step(query, self.request.threshold, list(keys))))

    def by_words(self, count: int) -> Steps[list[Hit]]:
        """Read the `count` best chunks by the words of the request, or all that have any."""
        rows = yield from ranked_by_words(
            self._pipeline,
            self._relation.lexical_statement or "",
            self._vector,
            self.request.words or "",
            count,
            self._relation.lexical_scan or GIN,
        )
        hits = map(self._hit, rows)
        return [hit for hit in hits if hit.key_text != self._origin.key_text]

    def lexical_weight(self) -> Steps[float]:
        """Read the weight of the words; raises UsageError where there is no index of them.

        And where it is another one than a moment ago, when the statement was made.
        """
        usual = yield from ready(self._pipeline)
        if usual.scan != self._relation.lexical_scan:
            raise UsageError(
                f"the index of the words of {self._pipeline.name} was replaced just now; search"
                " again"
            )
        given = self.request.lexical_weight
        return usual.weight if given is None else given

    def _step(self, statement: str, *values: object) -> Step:
        # It is made of names that PostgreSQL has quoted, and of what a person may say.
        return Step(statement, (self._vector, *values), raw=True)

    def _hit(self, row: tuple[Any, ...]) -> Hit:
        key_text, chunk_index, start_char, end_char, chunk, distance, *values, _ = row
        parts = len(self._pipeline.key.columns)
        key, values = key_of(values[:parts]), values[parts:]
        vector = values.pop() if self.request.mmr is not None else None
        found = {
            "key": key,
            "key_text": key_text,
            "score": 1 - distance,
            "chunk_index": chunk_index,
            "start_char": start_char,
            "end_char": end_char,
            "chunk": chunk,
            "columns": dict(zip(self.request.columns, values, strict=True)),
        }
        return Hit(**found) if vector is None else Candidate(**found, vector=vector)


def _best(scan: _Scan) -> Steps[list[Hit]]:
    request = scan.request
    wanted = min(request.offset + request.limit, MOST_COUNT)
    if request.words is None:
        found = yield from _near(scan, wanted)
        return found[request.offset :]
    return (yield from _hybrid(scan, _near, wanted, _chunk_of))


def _chunk_of(hit: Hit) -> Hashable:
    return (hit.key_text, hit.chunk_index, hit.chunk)


def _record_of(hit: Hit) -> Hashable:
    return hit.key_text


def _near(scan: _Scan, count: int) -> Steps[list[Hit]]:
    """Read the `count` nearest chunks that reach the threshold."""
    found = yield from scan.nearest(count)
    return [hit for hit in found if hit.score >= scan.request.threshold]


def _best_of_records(scan: _Scan) -> Steps[list[Hit]]:
    request = scan.request
    wanted = request.offset + request.limit
    if request.words is None:
        hits = (yield from _near_records(scan, wanted))[request.offset : wanted]
    else:
        hits = yield from _hybrid(scan, _near_records, wanted, _record_of)
    matched = yield from scan.matched([hit.key_text for hit in hits])
    # Of a record that was changed just now, what was found counts; words find what is far, too.
    least = 1 if request.words is None else 0
    return [replace(hit, matched=matched.get(hit.key_text, least)) for hit in hits]


def _near_records(scan: _Scan, wanted: int) -> Steps[list[Hit]]:
    """Read the best chunk of each record; looks at more chunks until there are enough records."""
    request = scan.request
    count = min(4 * wanted, MOST_COUNT)
    while True:
        found = yield from scan.nearest(count)
        best: dict[str, Hit] = {}
        for hit in found:
            if hit.score >= request.threshold:
                best.setdefault(hit.key_text, hit)
        if len(best) >= wanted or len(found) < count or found[-1].score < request.threshold:
            return list(best.values())
        count = min(4 * count, MOST_COUNT)


def _hybrid(
    scan: _Scan,
    near: Callable[[_Scan, int], Steps[list[Hit]]],
    wanted: int,
    identity: Callable[[Hit], Hashable],
) -> Steps[list[Hit]]:
    """Read what is `near`, fused with what has the words of the request."""
    weight = yield from scan.lexical_weight()
    by_vectors = firsts((yield from near(scan, max(wanted, DEPTH))), identity)
    by_words = firsts((yield from scan.by_words(DEPTH)), identity)
    scores = fused(list(by_vectors), list(by_words), weight)
    hits = by_words | by_vectors
    ordered = [replace(hits[each], hybrid_score=score) for each, score in scores.items()]
    return ordered[scan.request.offset : wanted]


def check_present(pipeline: Pipeline) -> Steps[None]:
    """Raise PipelineReplaced unless the table just read, locked by that, is the pipeline's own."""
    if not (yield from currency_read(pipeline)):
        raise _replaced(pipeline)


def _replaced(pipeline: Pipeline) -> PipelineReplaced:
    return PipelineReplaced(
        f"{pipeline.name} was replaced by its next generation, or dropped, just now; search again"
    )


def has_vectors(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether there is anything to find; raises SetupError when the target is gone."""
    rows = target_of(pipeline).vector_rows
    query = sql.SQL("select exists (select 1 from {} as target)").format(rows)
    try:
        with reading_chunks(connection, pipeline, COMPARING):
            return bool(connection.value(query, ()))
    except (UntrustedCode, MissingRight):
        raise
    except PipelineFault as error:
        raise SetupError(f"cannot search {pipeline.target}: {error}") from None
