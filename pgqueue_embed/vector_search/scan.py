"""One search near one origin: how many chunks are looked at, until there are as many as wanted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from pgqueue_embed.db.packed import pack_reals
from pgqueue_embed.db.steps import Step, Steps
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.columns import raw
from pgqueue_embed.pipeline.key_values import key_of
from pgqueue_embed.pipeline.option import MOST_COUNT
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.fusion import FUSED_DEPTH, firsts, fused
from pgqueue_embed.vector_search.hit import Hit, HitWithVector
from pgqueue_embed.vector_search.lexical import GIN, ranked_by_words, ready
from pgqueue_embed.vector_search.near import Origin
from pgqueue_embed.vector_search.relation import Relation
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.together import NearestStep

# Settings of this transaction alone; in SQL, since what people call in psql needs them, too. What
# the index scans of a round cost together would have PostgreSQL compile them, for longer than they
# take.
WIDEN = """
select pgembed.widen_scan(pipelines, %(count)s, %(scan)s), set_config('jit', 'off', true)
from pgembed.pipelines
where id = %(id)s
"""

# How many chunks of a record a search for it would find; NaN, of a vector of zeros, is above all.
MATCHED = """
select {key}, count(*)
from {relation}
where {condition} and {key_is_among_keys} and 1 - {distance} between $2 and 2
group by 1
"""


class Scan:
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
        self._vector = pack_reals(origin.vector)

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
        relation = self._relation
        rows = yield self._step(relation.statement, wanted, of_many=relation.of_many)
        # An index gives up at some time: with a rare condition, before it has found them all.
        is_enough = bool(rows) and rows[0][-1]
        if scan != "exact" and not is_enough:
            rows = yield self._step(relation.exact_statement, wanted)
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
            key_is_among_keys=raw(key.among("chunk", key_names)).replace("%(keys)s", "$3"),
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

    def _step(self, statement: str, *values: object, of_many: str | None = None) -> Step:
        # It is made of names that PostgreSQL has quoted, and of what a person may say.
        values = (self._vector, *values)
        return NearestStep(statement, values=values, raw=True, of_many=of_many)

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
        return Hit(**found) if vector is None else HitWithVector(**found, vector=vector)


def hits_of(scan: Scan) -> Steps[list[Hit]]:
    """Read what the request of `scan` asks for, best first."""
    return _best_of_records(scan) if scan.request.per_record else _best_chunks(scan)


def _best_chunks(scan: Scan) -> Steps[list[Hit]]:
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


def _near(scan: Scan, count: int) -> Steps[list[Hit]]:
    """Read the `count` nearest chunks that reach the threshold."""
    found = yield from scan.nearest(count)
    return [hit for hit in found if hit.score >= scan.request.threshold]


def _best_of_records(scan: Scan) -> Steps[list[Hit]]:
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


def _near_records(scan: Scan, wanted: int) -> Steps[list[Hit]]:
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
    scan: Scan,
    near: Callable[[Scan, int], Steps[list[Hit]]],
    wanted: int,
    identity: Callable[[Hit], Hashable],
) -> Steps[list[Hit]]:
    """Read what is `near`, fused with what has the words of the request."""
    weight = yield from scan.lexical_weight()
    by_vectors = firsts((yield from near(scan, max(wanted, FUSED_DEPTH))), identity)
    by_words = firsts((yield from scan.by_words(FUSED_DEPTH)), identity)
    scores = fused(list(by_vectors), list(by_words), weight)
    hits = by_words | by_vectors
    ordered = [replace(hits[each], hybrid_score=score) for each, score in scores.items()]
    return ordered[scan.request.offset : wanted]
