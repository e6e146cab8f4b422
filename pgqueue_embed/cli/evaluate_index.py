"""`evaluate` without judgements: measures the index of vectors against exact search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pgqueue_embed.cli.display import console, plain_table, print_json, say
from pgqueue_embed.errors import UsageError
from pgqueue_embed.quantities import count

if TYPE_CHECKING:
    from rich.table import Table

    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.evaluation import Effort, Evaluation, Query


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What to search for: the `k` nearest to a sample of stored chunks and to a file's queries.

    Of the nearest, a share of `recall` is to be found.
    """

    k: int
    recall: float
    sample: int
    seed: int
    queries: Path | None

    def check(self) -> None:
        """Raise UsageError for a number that is out of its range."""
        if not 1 <= self.k <= 100:
            raise UsageError(f"--k {self.k}: give a number from 1 to 100")
        if not 0 < self.recall <= 1:
            raise UsageError(f"--recall {self.recall:g}: give a share, more than 0 and at most 1")
        if not 1 <= self.sample <= 10_000:
            raise UsageError(f"--sample {self.sample}: give a number from 1 to 10,000")


def evaluate_index(
    conninfo: str,
    name: str,
    sampled: Sampled,
    dry_run: bool,
    as_json: bool,
    model_path: str | None,
) -> None:
    """Search by the index and without it, show what the index misses, and keep what is enough.

    Exits with 1 if no ef_search reaches the recall.
    """
    from pgqueue_embed.cli.display import progress_console
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search import evaluation
    from pgqueue_embed.vector_search.kept import NotKept

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        with progress_console().status("drawing chunks") as line:
            asked = [
                *evaluation.draw_queries(connection, pipeline, sampled.sample, sampled.seed),
                *_from_file(pipeline, sampled.queries, model_path),
            ]
            found = evaluation.evaluate(
                connection,
                pipeline,
                asked,
                k=sampled.k,
                on_progress=lambda what, done, of: line.update(f"{what}: {done} of {of}"),
            )
        least = found.least(sampled.recall)
        refused: NotKept | None = None
        if least is not None and least.ef_search is not None and not dry_run:
            try:
                evaluation.keep_effort(connection, pipeline, found, least)
            except NotKept as error:
                refused = error  # what took minutes to measure is shown all the same
    kept = not dry_run and refused is None
    _show(pipeline, found, least, asked, recall=sampled.recall, kept=kept, as_json=as_json)
    if refused is not None:
        raise refused
    if least is None:
        raise typer.Exit(1)


def _from_file(pipeline: Pipeline, path: Path | None, model_path: str | None) -> list[Query]:
    if path is None:
        return []
    from pgqueue_embed.db.vectors import vector_text
    from pgqueue_embed.vector_search.evaluation import Query
    from pgqueue_embed.vector_search.judgements import read_queries
    from pgqueue_embed.vector_search.query_vector import QueryEncoder

    texts = [each.text for each in read_queries(path)]
    encoder = QueryEncoder(pipeline, model_path=model_path)
    vectors = [encoder.encode(text, pipeline.spec.truncate_dim) for text in texts]
    return [Query(vector=vector_text(vector), is_stored=False) for vector in vectors]


def _show(
    pipeline: Pipeline,
    found: Evaluation,
    least: Effort | None,
    asked: list[Query],
    *,
    recall: float,
    kept: bool,
    as_json: bool,
) -> None:
    chosen = None if least is None else least.ef_search
    if as_json:
        print_json({**asdict(found), "recall": recall, "ef_search": chosen, "kept": kept})
        return
    out = console()
    stored = sum(query.is_stored for query in asked)
    own = f" and {len(asked) - stored:,} of the file" if len(asked) > stored else ""
    say(f"{found.index}, by {count(stored, 'stored chunk')}{own}, {found.k} nearest each")
    out.print(_table(found))
    if chosen is None:
        say(
            f"no ef_search reaches a recall of {recall:g}; {found.nearest().ef_search} is nearest."
            " An index of more finds more: pgembed index --quantize none, or --m 32"
            " --ef-construction 200"
        )
    elif kept:
        say(f"searches of {pipeline.name} now use ef_search {chosen}, the least for {recall:g}")
    else:
        say(f"ef_search {chosen} is the least for {recall:g}; searches are as before")


def _table(found: Evaluation) -> Table:
    has_queries = found.exact.query_recall is not None
    own = ["Of queries"] if has_queries else []
    table = plain_table(["ef_search"], [f"Recall@{found.k}", *own, "p50 ms", "p95 ms"])
    for each in (found.exact, *found.efforts):
        shares = [(each.recall, each.recall_error), (each.query_recall, each.query_recall_error)]
        table.add_row(
            "exact" if each.ef_search is None else str(each.ef_search),
            *(_share(mean, error) for mean, error in shares[: 1 + has_queries]),
            f"{1000 * each.p50_seconds:.1f}",
            f"{1000 * each.p95_seconds:.1f}",
        )
    return table


def _share(mean: float | None, error: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4f}" if error is None else f"{mean:.4f} ±{error:.4f}"
