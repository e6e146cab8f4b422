"""Measures searches by what people have judged to be right, in one pipeline or in two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.canonical_keys import canonical_keys
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.judgements import Judgements
from pgqueue_embed.vector_search.measures import DEPTH, Mean, by_query, estimates_by_name
from pgqueue_embed.vector_search.reading import COMPARING, reading_chunks
from pgqueue_embed.vector_search.request import SearchRequest

# Returns what a search for some words finds.
Find = Callable[[str], Sequence[Hit]]

# As people search, with all that the measures look at.
REQUEST = SearchRequest(limit=DEPTH, per_record=True)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The measures of a pipeline's searches by name; `missing` relevant records have no vectors."""

    pipeline: str
    model: str
    measures: Mapping[str, Mean]
    missing: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The measures of one pipeline or two, by `queries` with so many `relevant` records.

    `difference` is the second one's less the first's, paired: of the same queries.
    """

    queries: int
    relevant: int
    systems: Sequence[Judged]
    difference: Mapping[str, Mean] | None


def canonical(connection: Connection, pipeline: Pipeline, judgements: Judgements) -> Judgements:
    """Return the judgements with the keys as the pipeline writes them.

    Raises UsageError for what can be no key of its source.
    """
    keys = sorted({key for judged in judgements.values() for key in judged})
    try:
        written = run(connection, canonical_keys(pipeline, keys))
    except UsageError as error:
        raise UsageError(f"--judgements: {error}") from None
    names = dict(zip(keys, written, strict=True))
    return {
        query: {names[key]: relevance for key, relevance in judged.items()}
        for query, judged in judgements.items()
    }


def compare_searches(
    connection: Connection,
    searches: Sequence[tuple[Pipeline, Find]],
    queries: Mapping[str, str],
    judgements: Judgements,
    *,
    seed: int,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> Comparison:
    """Search one pipeline or two for each of `queries`, words by id, and compare with judgements.

    `on_progress` gets a pipeline's name, how many searches are done, and of how many. Raises
    UsageError for judgements that name no record of a pipeline's vectors.
    """
    judged = {query: judgements[query] for query in queries}
    of_pipelines = [canonical(connection, pipeline, judged) for pipeline, _ in searches]
    # Before the first search: there may be thousands.
    missing = [
        _count_missing(connection, pipeline, relevance)
        for (pipeline, _), relevance in zip(searches, of_pipelines, strict=True)
    ]
    values = [
        _search_all(pipeline.name, find, queries, relevance, on_progress)
        for (pipeline, find), relevance in zip(searches, of_pipelines, strict=True)
    ]
    differences = [values[1] - values[0]] if len(values) == 2 else []
    found = estimates_by_name([*values, *differences], seed)
    systems = [
        Judged(pipeline=pipeline.name, model=pipeline.model, measures=measures, missing=lacking)
        for (pipeline, _), measures, lacking in zip(searches, found, missing, strict=False)
    ]
    return Comparison(
        queries=len(queries),
        relevant=len(_relevant(of_pipelines[0])),
        systems=systems,
        difference=found[-1] if differences else None,
    )


def _relevant(judgements: Judgements) -> set[str]:
    return {key for judged in judgements.values() for key, each in judged.items() if each > 0}


def _search_all(
    name: str,
    find: Find,
    queries: Mapping[str, str],
    judgements: Judgements,
    on_progress: Callable[[str, int, int], None],
) -> NDArray[np.float64]:
    rankings = {}
    for number, (query, words) in enumerate(queries.items(), start=1):
        rankings[query] = [hit.key_text for hit in find(words)]
        on_progress(name, number, len(queries))
    return by_query(rankings, judgements)


def _count_missing(connection: Connection, pipeline: Pipeline, judgements: Judgements) -> int:
    relevant = sorted(_relevant(judgements))
    missing = len(relevant) - _count_embedded(connection, pipeline, relevant)
    if missing == len(relevant):
        raise UsageError(
            f"none of the {len(relevant):,} records that --judgements calls relevant has vectors in"
            f" {pipeline.name}; a record is named by its key, {pipeline.key}"
        )
    return missing


EMBEDDED = """
select count(distinct {key})
from {rows} as target
where {embedding} is not null and {key_is_among}
"""


def _count_embedded(connection: Connection, pipeline: Pipeline, keys: list[str]) -> int:
    """Return how many records of `keys` have vectors."""
    target = target_of(pipeline)
    query = sql.SQL(EMBEDDED).format(
        key=pipeline.key.text("target", pipeline.spec.columns.fulltext_id),
        rows=target.vector_rows,
        embedding=sql.Identifier("target", pipeline.spec.columns.embedding),
        key_is_among=target.key_is_among,
    )
    with reading_chunks(connection, pipeline, COMPARING):
        return int(connection.value(query, {"keys": keys}))
