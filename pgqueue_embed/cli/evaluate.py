"""The command that measures what searches find: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgqueue_embed.cli.display import AsJson
from pgqueue_embed.cli.evaluate_index import Sampled, evaluate_index
from pgqueue_embed.cli.evaluate_judged import (
    Against,
    JudgedFiles,
    JudgementsFile,
    evaluate_judged,
)
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import ModelPath, PipelineName
from pgqueue_embed.errors import UsageError

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
    sampled = Sampled(k=k, recall=recall, sample=sample, seed=seed, queries=queries)
    sampled.check()
    if judgements is None and against is not None:
        raise UsageError("--against compares by --judgements; give a file of them, and --queries")
    if judgements is None:
        evaluate_index(conninfo, name, sampled, dry_run, as_json, model_path)
    else:
        files = JudgedFiles(queries=queries, judgements=judgements)
        evaluate_judged(conninfo, name, files, against, seed, dry_run, as_json, model_path)
