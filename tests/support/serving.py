"""A server of searches in a thread, whose model costs nothing: its database is a real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.shapes import TABLE_LOOK_UP
from pgqueue_embed.errors import UsageError
from pgqueue_embed.search_server import encoders
from pgqueue_embed.search_server.encoders import WarmEncoders
from pgqueue_embed.search_server.faults import told
from pgqueue_embed.search_server.query_batches import Encoded
from pgqueue_embed.search_server.service import Search, SearchService
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.web_server import Listening, Server
from tests.support.fakes import DIMENSIONS, unit_vector

QUERY = "the stent fractured"
SEARCH = {"pipeline": "reports", "query": QUERY}

# A query with this word is too long, and one with that breaks the batch that it is in.
TOO_LONG, BREAKING = "TOOLONG", "BREAKING"


class FakeQueryModel:
    """Fulfils what the device thread and the batches need, with the vectors of `unit_vector`.

    `batches` are the texts of each pass. With `hold`, each pass waits for it.
    """

    name = "fake"
    dimensions = DIMENSIONS
    limits = TABLE_LOOK_UP
    chunks_in_fp32 = 0
    passes_at_once = 1
    device = "cpu"
    precision = "fp32"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Event()
        self.hold: threading.Event | None = None

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def chunk(self, query: str) -> Chunk:
        if TOO_LONG in query:
            raise UsageError("the query has 999 tokens, fake reads 100")
        ids = np.array([len(word) for word in query.split()], np.int32)
        return Chunk(index=0, start=0, end=len(query), text=query, token_ids=ids)

    def sequence_tokens(self, chunk: Chunk) -> int:
        return len(chunk.token_ids) + 2

    def unknown_share(self, query: str) -> float:
        del query
        return 0.25

    def launch(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Any:
        del length
        texts = [chunk.text for chunk in chunks]
        self.batches.append(texts)
        self.entered.set()
        if self.hold is not None and not self.hold.wait(60):
            raise TimeoutError("nobody let the fake model go on")
        if any(BREAKING in text for text in texts):
            raise RuntimeError("the fake device is broken")
        return lambda: np.stack([unit_vector(text) for text in texts])

    def verify(self, rows: int, length: int) -> None:
        del rows, length


class Served:
    """A running server and a client of it."""

    def __init__(self, server: Server, model: FakeQueryModel, encoders: WarmEncoders) -> None:
        self.server = server
        self.url = server.url
        self.model = model
        self.encoders = encoders
        self.client = httpx.Client(base_url=server.url, timeout=60, verify=False)

    def post(self, path: str, body: object) -> httpx.Response:
        """Send JSON."""
        return self.client.post(path, json=body)


@contextmanager
def serving(conninfo: str, names: Sequence[str] = ()) -> Iterator[Served]:
    """Serve the pipelines of the fake model, in a thread of this process."""
    # Imported here: the protocol of assistants takes a second.
    from pgqueue_embed.search_server.app import HEALTH, make_search_app

    model, warm = FakeQueryModel(), WarmEncoders()
    with (
        patch.object(encoders, "check_local_model", lambda _pipeline: None),
        patch.object(encoders, "open_model", lambda *_: model),
    ):
        server = Server(
            lambda _url: make_search_app(conninfo, warm, names),
            Listening(port=0),
            open_paths=[HEALTH],
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            assert server.started.wait(30)
            served = Served(server, model, warm)
            with served.client:
                yield served
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive()


class FakeEncoder:
    """Encodes by `unit_vector`."""

    async def encode(self, pipeline: Any, texts: Any) -> Encoded:
        del pipeline
        return Encoded(vectors=np.stack([unit_vector(each) for each in texts]), tokens=0)


@contextmanager
def status_of(conninfo: str) -> Iterator[Callable[..., tuple[int, str]]]:
    """Give a function that searches as a role, and returns what its client would be told."""
    with closing(SearchService(conninfo, FakeEncoder())) as service:

        def search_once(**fields: Any) -> tuple[int, str]:
            asked = Search(pipeline="reports", query=QUERY, request=SearchRequest(**fields))
            try:
                asyncio.run(service.find(asked))
            except Exception as error:  # noqa: BLE001 - it is what is looked at
                says = told(error)
                return says.status, says.message
            return 200, ""

        yield search_once
