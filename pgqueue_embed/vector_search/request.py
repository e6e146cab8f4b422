"""A search as it is asked for, and the checks that need no database."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import (
    Option,
    check_count,
    check_names,
    check_options,
    check_type,
    check_within,
)
from pgqueue_embed.pipeline.rules import check_where_option
from pgqueue_embed.untrusted.shell import command

# The panels of the help of `search`.
MAIN_PANEL = "Options"
ORDER_PANEL = "Order"

# All of them are compared with one another, or read by a model.
MOST_REFINED = 1_000

# All that there is reaches it: what a threshold leaves out was to be left out.
LEAST_COSINE = -1.0

# What is wanted, where something else was given.
COSINES = (
    "a cosine similarity lies between -1 and 1; unrelated text is near 0, a good answer often above"
    " 0.5"
)
TOPS = f"give how many hits to order anew, 1 to {MOST_REFINED:,}"
TRADE_OFFS = "give a number from 0 to 1, the weight of relevance beside variety; 0.7 is usual"
WEIGHTS = "give a number from 0 to 1, the weight of words beside vectors"


def _count(option: Option, value: Any) -> None:
    check_count(option.flag, value)


def _names(option: Option, value: Any) -> None:
    check_names(option.flag, value)


def _within(least: float, most: float, wanted: str) -> Callable[[Option, Any], None]:
    def rule(option: Option, value: Any) -> None:
        check_within(option.flag, value, option.type, least, most, wanted)

    return rule


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """How many chunks to return, and which ones.

    Chunks have a cosine similarity of at least `threshold`, -1 for all; the first `offset` of them
    are left out. `where` is an SQL condition over the columns of the source and of the target, and
    `columns` are shown with each hit. With `per_record` each record is found once, by its best
    chunk. With `mmr`, 1 for relevance alone to 0, the first `rerank_top` hits are ordered for
    variety; these are those that a re-ranking orders, too. With `words` the search is hybrid: what
    has them, by BM25, is fused with what is near, and `threshold` is for the latter.
    `lexical_weight`, 0 to 1, is that of the words; None for the pipeline's. `condition_name` is
    what errors call `where`.
    """

    limit: Annotated[
        int,
        Option(
            help="Show at most so many.",
            rule=_count,
            panel=MAIN_PANEL,
        ),
    ] = 5
    offset: Annotated[
        int,
        Option(
            help="Leave the first so many out.",
            rule=_within(0, math.inf, "give 0 or more"),
            panel=MAIN_PANEL,
        ),
    ] = 0
    threshold: Annotated[
        float,
        Option(
            help="Least cosine similarity, -1, for all, to 1.",
            rule=_within(-1, 1, COSINES),
            panel=MAIN_PANEL,
        ),
    ] = LEAST_COSINE
    where: Annotated[
        str | None,
        Option(
            help="Only where this SQL condition over columns of source and target holds.",
            rule=check_where_option,
            panel=MAIN_PANEL,
        ),
    ] = None
    columns: Annotated[
        tuple[str, ...],
        Option(
            help="Columns of source or target to show: a,b.",
            rule=_names,
            metavar="<str>",
            panel=MAIN_PANEL,
        ),
    ] = ()
    per_record: Annotated[
        bool,
        Option(help="Each record once, by its best chunk, with how many match.", panel=MAIN_PANEL),
    ] = False
    rerank_top: Annotated[
        int,
        Option(
            help="How many of the nearest to order so.",
            rule=_within(1, MOST_REFINED, TOPS),
            panel=ORDER_PANEL,
        ),
    ] = 50
    mmr: Annotated[
        float | None,
        Option(
            help="Order for variety: 1 for relevance alone, to 0; 0.7 is usual.",
            rule=_within(0, 1, TRADE_OFFS),
            panel=ORDER_PANEL,
        ),
    ] = None
    words: str | None = None
    lexical_weight: Annotated[
        float | None,
        Option(
            name="hybrid_weight",
            help="Weight of the words, 0 to 1. Defaults to what evaluate has found, or 0.5.",
            rule=_within(0, 1, WEIGHTS),
            panel=ORDER_PANEL,
        ),
    ] = None
    condition_name: str = "--where"

    @property
    def reads_source(self) -> bool:
        """Whether rows of the source are read, and not chunks alone."""
        return self.where is not None or bool(self.columns)

    def check(self) -> None:
        """Raise UsageError for what no search can be."""
        check_options(self)
        if self.words is not None:
            check_type("--hybrid", self.words, str)
        elif self.lexical_weight is not None:
            raise UsageError("--hybrid-weight is of a hybrid search; add --hybrid")


def no_vectors(name: str) -> str:
    """Return what a person is told who searches a pipeline that has nothing to find."""
    queueing = command("enqueue", name)
    return f"{name} has no vectors yet; embed some: pgembed work (where none wait: {queueing})"
