"""The options of `search` that bring what it finds into a better order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.vector_search.request import SearchRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pgqueue_embed.vector_search.order import Score

PANEL = "Order"

Rerank = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        help="Order by a cross-encoder, a name or a folder: it reads query and chunk together.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
RerankTop = Annotated[
    int,
    typer.Option(
        "--rerank-top", help="How many of the nearest to order so.", rich_help_panel=PANEL
    ),
]
Mmr = Annotated[
    float | None,
    typer.Option(
        "--mmr",
        help="Order for variety: 1 for relevance alone, to 0; 0.7 is usual.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="Where --rerank computes: auto, mps, cuda or cpu.", rich_help_panel=PANEL
    ),
]
Hybrid = Annotated[
    bool,
    typer.Option(
        "--hybrid",
        help="Find by the query's words, too: model numbers, names, exact terms. It takes an index"
        " of words: pgembed index NAME --lexical.",
        rich_help_panel=PANEL,
    ),
]
HybridWeight = Annotated[
    float | None,
    typer.Option(
        "--hybrid-weight",
        help="Weight of the words, 0 to 1. Defaults to what evaluate has found, or 0.5.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order hits are shown."""

    rerank: Rerank = None
    rerank_top: RerankTop = SearchRequest.rerank_top
    mmr: Mmr = None
    device: Device = "auto"
    hybrid: Hybrid = False
    hybrid_weight: HybridWeight = None

    def score(self, query: str) -> Score | None:
        """Return what scores chunks for `query`, its model loaded, or None where none is asked for.

        Raises ModelError for a model that is not to be had, or is no cross-encoder.
        """
        if self.rerank is None:
            return None
        from pgqueue_embed.cli.display import progress_console
        from pgqueue_embed.embedding.cross_encoder import cross_encoder

        with progress_console().status(f"loading {self.rerank}"):
            model = cross_encoder(self.rerank, self.device)

        def score(chunks: Sequence[str]) -> NDArray[np.float32]:
            with progress_console().status(f"reading {len(chunks)} chunks"):
                return model.scores(query, chunks)

        return score
