"""A search as it is asked for, and the checks that need no database."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import (
    check_count,
    check_names,
    check_type,
    check_where,
    check_within,
)
from pgqueue_embed.untrusted.shell import command

# All of them are compared with one another, or read by a model.
MOST_REFINED = 1_000

# What is wanted, where something else was given.
COSINES = (
    "a cosine similarity lies between -1 and 1; unrelated text is near 0, a good answer often above"
    " 0.5"
)
TOPS = f"give how many hits to order anew, 1 to {MOST_REFINED:,}"
TRADE_OFFS = "give a number from 0 to 1, the weight of relevance beside variety; 0.7 is usual"
WEIGHTS = "give a number from 0 to 1, the weight of words beside vectors"


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """How many chunks to return, and which ones.

    Chunks have a cosine similarity of at least `threshold`; the first `offset` of them are left
    out. `where` is an SQL condition over the columns of the source and of the target, and `columns`
    are shown with each hit. With `per_record` each record is found once, by its best chunk. With
    `mmr`, 1 for relevance alone to 0, the first `rerank_top` hits are ordered for variety; these
    are those that a re-ranking orders, too. With `words` the search is hybrid: what has them, by
    BM25, is fused with what is near, and `threshold` is for the latter. `lexical_weight`, 0 to 1,
    is that of the words; None for the pipeline's. `condition_name` is what errors call `where`.
    """

    limit: int = 5
    threshold: float = 0.0
    offset: int = 0
    where: str | None = None
    columns: tuple[str, ...] = ()
    per_record: bool = False
    rerank_top: int = 50
    mmr: float | None = None
    words: str | None = None
    lexical_weight: float | None = None
    condition_name: str = "--where"

    @property
    def reads_source(self) -> bool:
        """Whether rows of the source are read, and not chunks alone."""
        return self.where is not None or bool(self.columns)

    def check(self) -> None:
        """Raise UsageError for what no search can be."""
        check_count("--limit", self.limit)
        check_within("--offset", self.offset, int, 0, math.inf, "give 0 or more")
        check_within("--threshold", self.threshold, float, -1, 1, COSINES)
        check_where(self.where)
        check_names("--columns", self.columns)
        check_type("--per-record", self.per_record, bool)
        check_within("--rerank-top", self.rerank_top, int, 1, MOST_REFINED, TOPS)
        if self.mmr is not None:
            check_within("--mmr", self.mmr, float, 0, 1, TRADE_OFFS)
        if self.words is not None:
            check_type("--hybrid", self.words, str)
        self._check_weight()

    def _check_weight(self) -> None:
        if self.lexical_weight is None:
            return
        check_within("--hybrid-weight", self.lexical_weight, float, 0, 1, WEIGHTS)
        if self.words is None:
            raise UsageError("--hybrid-weight is of a hybrid search; add --hybrid")


def no_vectors(name: str) -> str:
    """Return what a person is told who searches a pipeline that has nothing to find."""
    queueing = command("enqueue", name)
    return f"{name} has no vectors yet; embed some: pgembed work (where none wait: {queueing})"
