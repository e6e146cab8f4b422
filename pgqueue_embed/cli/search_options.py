"""The options of `search`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgqueue_embed.cli.options import OptionGroup
from pgqueue_embed.vector_search.options import SEARCH_OPTIONS, request_of
from pgqueue_embed.vector_search.request import SearchRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pgqueue_embed.vector_search.order import Score


class WantedSearch(OptionGroup):
    """The options that say what is found, and in which order."""

    options = tuple(SEARCH_OPTIONS.values())

    def request(self, query: str) -> SearchRequest:
        """Return the search for `query`; raises UsageError for what no search can be."""
        lists = self.given["columns"] or ()
        columns = tuple(name.strip() for each in lists if each for name in each.split(","))
        request = request_of(query, {**self.given, "columns": columns})
        request.check()
        if self.given["device"] != "auto":
            from pgqueue_embed.embedding.devices import check_device

            check_device(self.given["device"])
        return request

    def score(self, query: str) -> Score | None:
        """Return what scores chunks for `query`, its model loaded, or None where none is asked for.

        Raises ModelError for a model that is not to be had, or is no cross-encoder.
        """
        if self.given["rerank"] is None:
            return None
        from pgqueue_embed.cli.display import progress_console
        from pgqueue_embed.embedding.cross_encoder import cross_encoder

        with progress_console().status(f"loading {self.given['rerank']}"):
            model = cross_encoder(self.given["rerank"], self.given["device"])

        def score(chunks: Sequence[str]) -> NDArray[np.float32]:
            with progress_console().status(f"reading {len(chunks)} chunks"):
                return model.scores(query, chunks)

        return score
