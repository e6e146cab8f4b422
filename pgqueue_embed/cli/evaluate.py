"""The command that measures what searches find: evaluate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import console, plain_table, print_json, say
from pgqueue_embed.cli.evaluate_judged import (
    Against,
    JudgedFiles,
    JudgementsFile,
    evaluate_judged,
)
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import ModelPath, PipelineName
from pgqueue_embed.errors import UsageError
from pgqueue_embed.quantities import count

if TYPE_CHECKING:
    from rich.table import Table

    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.evaluation import Effort, Evaluation, Query

K = Annotated[int, typer.Option("--k", help="How many nearest chunks a search is for.")]
Recall = Annotated[
    float, typer.Option("--recall", help="Share of these that is to be found, 0 to 1.")
]
Sample = Annotated[
    int, typer.Option("--sample", help="Search for what is near to so many stored chunks.")
]
Seed = Annotated[int, typer.Option("--seed", help="Draw other chunks, or other queries.")]
Queries = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        help="A file of queries, one a line: WORDS, ID and WORDS by a tab, or JSON of id and text.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Measure, and let searches be.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(evaluate))


def evaluate(
    conninfo: str,
    name: PipelineName,
    k: K = 10,
    recall: Recall = 0.99,
    sample: Sample = 100,
    seed: Seed = 0,
    queries: Queries = None,
    judgements: JudgementsFile = None,
    against: Against = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    model_path: ModelPath = None,
) -> None:
    """Measure what searches find, against exact search or against people's judgements.

    Compares the HNSW index with exact search, at several hnsw.ef_search. The
    smallest that reaches --recall is kept with the pipeline: all its searches
    use it, in SQL too. Exits with 1 if none does.

    With --judgements, tells instead how good the answers are, by nDCG@10,
    Recall@100 and MRR@10, and how sure that is; --against compares. If words
    are indexed, the best weight of these in --hybrid searches is kept, too.

    Example: pgembed evaluate reports --recall 0.99

    Example: pgembed evaluate reports --queries q.tsv --judgements qrels.txt

    Example: pgembed evaluate reports … --against "reports (next)"
    """
    _check(k, recall, sample)
    if judgements is not None:
        files = JudgedFiles(queries=queries, judgements=judgements)
        evaluate_judged(
            conninfo,
            name,
            files,
            against,
            seed=seed,
            dry_run=dry_run,
            as_json=as_json,
            model_path=model_path,
        )
        return
    if against is not None:
        raise UsageError("--against compares by --judgements; give a file of them, and --queries")
    from pgqueue_embed.cli.display import progress_console
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search import evaluation

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        with progress_console().status("drawing chunks") as line:
            asked = [
                *evaluation.draw_queries(connection, pipeline, sample, seed),
                *_from_file(pipeline, queries, model_path),
            ]
            found = evaluation.evaluate(
                connection,
                pipeline,
                asked,
                k=k,
                on_progress=lambda what, done, of: line.update(f"{what}: {done} of {of}"),
            )
        least = found.least(recall)
        if least is not None and least.ef_search is not None and not dry_run:
            evaluation.keep_effort(connection, pipeline, found.index, least)
    _show(pipeline, found, least, asked, recall=recall, kept=not dry_run, as_json=as_json)
    if least is None:
        raise typer.Exit(1)


def _check(k: int, recall: float, sample: int) -> None:
    if not 1 <= k <= 100:
        raise UsageError(f"--k {k}: give a number from 1 to 100")
    if not 0 < recall <= 1:
        raise UsageError(f"--recall {recall:g}: give a share, more than 0 and at most 1")
    if not 1 <= sample <= 10_000:
        raise UsageError(f"--sample {sample}: give a number from 1 to 10,000")


def _from_file(pipeline: Pipeline, path: Path | None, model_path: str | None) -> list[Query]:
    if path is None:
        return []
    from pgqueue_embed.vector_search.evaluation import Query
    from pgqueue_embed.vector_search.judgements import read_queries
    from pgqueue_embed.vector_search.query_vector import QueryEncoder

    texts = [each.text for each in read_queries(path)]
    encoder = QueryEncoder(pipeline, model_path=model_path)
    vectors = [encoder.encode(text, pipeline.spec.truncate_dim) for text in texts]
    return [
        Query(vector="[" + ",".join(map(repr, vector.tolist())) + "]", is_stored=False)
        for vector in vectors
    ]


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
        best = max(found.efforts, key=lambda each: each.recall or 0)
        say(
            f"no ef_search reaches a recall of {recall:g}; {best.ef_search} is nearest. An index of"
            " more finds more: pgembed index --quantize none, or --m 32 --ef-construction 200"
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
        shares = (each.recall, each.query_recall) if has_queries else (each.recall,)
        table.add_row(
            "exact" if each.ef_search is None else str(each.ef_search),
            *("" if share is None else f"{share:.4f}" for share in shares),
            f"{1000 * each.p50_seconds:.1f}",
            f"{1000 * each.p95_seconds:.1f}",
        )
    return table
