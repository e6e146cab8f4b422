"""`evaluate` with judgements: measures how good answers are, and compares pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import console, plain_table, print_json, say
from pgqueue_embed.errors import UsageError
from pgqueue_embed.quantities import count

if TYPE_CHECKING:
    from rich.table import Table

    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.hit import Hit
    from pgqueue_embed.vector_search.judged_search import Comparison, Find
    from pgqueue_embed.vector_search.kept import NotKept
    from pgqueue_embed.vector_search.measures import Mean
    from pgqueue_embed.vector_search.request import SearchRequest
    from pgqueue_embed.vector_search.weighing import SearchWords, Weighed

JudgementsFile = Annotated[
    Path | None,
    typer.Option(
        "--judgements",
        help="A file of which records answer --queries: TREC's qrels, or JSON.",
        show_default=False,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="Another pipeline, or the next generation: what differs, by --judgements.",
        show_default=False,
    ),
]

MOST_WIDTH = 400

# Of fewer queries, those that were drawn again and again spread less than others would.
FEW_QUERIES = 30


@dataclass(frozen=True, kw_only=True)
class JudgedFiles:
    """The files of queries and of judgements."""

    queries: Path | None
    judgements: Path

    def read(self) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
        """Return the words of the judged queries by id, and the judgements; raises UsageError."""
        from pgqueue_embed.vector_search.judgements import (
            judged_queries,
            read_judgements,
            read_queries,
        )

        if self.queries is None:
            raise UsageError("--judgements are of queries; give their file, too: --queries FILE")
        queries, judgements = read_queries(self.queries), read_judgements(self.judgements)
        return dict(judged_queries(queries, judgements, self.queries)), judgements


def evaluate_judged(
    conninfo: str,
    name: str,
    files: JudgedFiles,
    against: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
    model_path: str | None,
) -> None:
    """Search for the queries in a pipeline, and in another one, and show how good that is.

    Of one pipeline whose words are indexed, their weight is found along.
    """
    from pgqueue_embed.cli.display import progress_console
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search.judged_search import compare_searches
    from pgqueue_embed.vector_search.lexical_index import has_lexical_index
    from pgqueue_embed.vector_search.weighing import LEAST_QUERIES, rank, weigh

    queries, judgements = files.read()
    with connect(conninfo) as connection:
        check_schema(connection)
        names = [name] if against is None else [name, against]
        pipelines = [load_pipeline(connection, each) for each in names]
        with progress_console().status("loading the model") as line:
            found = compare_searches(
                connection,
                [(each, _finder(connection, each, pipelines[0], model_path)) for each in pipelines],
                queries,
                judgements,
                seed=seed,
                on_progress=lambda what, done, of: line.update(f"{what}: {done} of {of} queries"),
            )
            weighed, refused = None, None
            can_weigh = against is None and len(queries) >= LEAST_QUERIES
            if can_weigh and has_lexical_index(connection, pipelines[0]):
                rankings = rank(
                    _searcher(connection, pipelines[0], pipelines[0], model_path),
                    queries,
                    lambda done, of: line.update(f"by words: {done} of {of} queries"),
                )
                weighed = weigh(connection, pipelines[0], rankings, judgements, seed=seed)
                if not (dry_run or weighed.is_worse):
                    refused = _keep(connection, pipelines[0], weighed)
    kept = weighed is not None and not (dry_run or weighed.is_worse or refused)
    if as_json:
        hybrid = {"hybrid": {**asdict(weighed), "kept": kept}} if weighed else {}
        print_json({**asdict(found), **hybrid})
    else:
        _show(found)
        if weighed is not None:
            _show_weight(name, weighed, kept=kept)
    if refused is not None:
        raise refused


def _keep(connection: Connection, pipeline: Pipeline, weighed: Weighed) -> NotKept | None:
    """Return why the weight is not kept, if so: what was measured is shown all the same."""
    from pgqueue_embed.vector_search.kept import NotKept
    from pgqueue_embed.vector_search.weighing import keep_weight

    try:
        keep_weight(connection, pipeline, weighed.weight)
    except NotKept as error:
        return error
    return None


def _finder(
    connection: Connection, pipeline: Pipeline, first: Pipeline, model_path: str | None
) -> Find:
    from pgqueue_embed.vector_search.judged_search import REQUEST

    search = _searcher(connection, pipeline, first, model_path)
    return lambda words: search(words, REQUEST)


def _searcher(
    connection: Connection, pipeline: Pipeline, first: Pipeline, model_path: str | None
) -> SearchWords:
    from pgqueue_embed.vector_search.query import search
    from pgqueue_embed.vector_search.query_vector import QueryEncoder

    has_first_model = pipeline.model_fingerprint == first.model_fingerprint
    encoder = QueryEncoder(pipeline, model_path=model_path if has_first_model else None)

    def find(words: str, request: SearchRequest) -> list[Hit]:
        vector = encoder.encode(words, pipeline.spec.truncate_dim)
        return search(connection, pipeline, vector, request)

    return find


def _show(found: Comparison) -> None:
    say(f"by {_queries(found.queries)} with {count(found.relevant, 'relevant record')}")
    # As wide as the pipelines' names make it: a row of numbers that is folded is none to read.
    console().print(_table(found), width=MOST_WIDTH, crop=False)
    for system in found.systems:
        if system.missing:
            lacking = count(system.missing, "relevant record")
            say(f"without vectors in {system.pipeline}: {lacking}")
    if found.queries < FEW_QUERIES:
        say(
            f"of only {_queries(found.queries)}, these intervals are too narrow",
            fg="yellow",
            err=True,
        )
    if found.difference is not None:
        first, second = (each.pipeline for each in found.systems)
        say(_verdict(first, second, found.difference))


def _show_weight(name: str, weighed: Weighed, *, kept: bool) -> None:
    """Say what words add, by the queries that the weight was not found by."""
    from pgqueue_embed.vector_search.weighing import CHOSEN_BY

    measure = CHOSEN_BY
    vectors, hybrid = (each[measure].mean for each in (weighed.vectors, weighed.hybrid))
    say(
        f"with --hybrid, by {_queries(weighed.queries)} that did not choose the weight: {measure}"
        f" {hybrid:.3f} instead of {vectors:.3f}, {_cell(weighed.difference[measure], '+')}"
    )
    if kept:
        say(f"hybrid searches of {name} now use a weight of {weighed.weight:g}")
    elif weighed.is_worse:
        change = _cell(weighed.change[measure], "+")
        say(
            f"a weight of {weighed.weight:g}, the best one by the other queries, is worse by"
            f" {measure} than the {weighed.present:g} of now, {change}: it is not kept, and"
            " searches are as before"
        )
    else:
        say(f"{weighed.weight:g} is the best weight; searches are as before")


def _queries(number: int) -> str:
    return "1 query" if number == 1 else f"{number:,} queries"


def _table(found: Comparison) -> Table:
    titles = [each.pipeline for each in found.systems]
    table = plain_table([""], [*titles, *(["difference"] if found.difference else [])])
    for measure in found.systems[0].measures:
        cells = [_cell(each.measures[measure], "") for each in found.systems]
        if found.difference is not None:
            cells.append(_cell(found.difference[measure], "+"))
        table.add_row(measure, *cells)
    return table


def _cell(estimate: Mean, sign: str) -> str:
    low, high = (format(each, f"{sign}.3f") for each in (estimate.low, estimate.high))
    return f"{estimate.mean:{sign}.3f} {low} to {high}"


def _verdict(first: str, second: str, difference: Mapping[str, Mean]) -> str:
    """Return what the intervals tell: one that has 0 in it tells no difference."""
    better = [measure for measure, each in difference.items() if each.low > 0]
    worse = [measure for measure, each in difference.items() if each.high < 0]
    if not better and not worse:
        return f"these queries tell no difference between {first} and {second}"
    found = [
        f"{word} by {', '.join(measures)}"
        for word, measures in (("better", better), ("worse", worse))
        if measures
    ]
    return f"{second} is {' and '.join(found)} than {first}"
