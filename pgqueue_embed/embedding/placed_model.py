"""A model's network and its readers, on a device, in a variant whose canaries agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import canaries, network, self_test, transfers
from pgqueue_embed.embedding.canary_check import ON_CPU, CanaryCheck
from pgqueue_embed.embedding.choice import first_that_agrees
from pgqueue_embed.embedding.devices import cores, kind_of
from pgqueue_embed.embedding.facts import learn_facts
from pgqueue_embed.embedding.fingerprint import Fingerprint, fingerprint
from pgqueue_embed.embedding.library_network import LibraryNetwork
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY, ModelUse
from pgqueue_embed.embedding.opening import open_network
from pgqueue_embed.embedding.pass_threads import PassThreads
from pgqueue_embed.embedding.placement import Placement, place
from pgqueue_embed.embedding.precision import FP32, LOWEST_COSINE, Variant, disagreement
from pgqueue_embed.embedding.reader import TaskReader
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.rows import Vectors, WrongVectors, unit_rows
from pgqueue_embed.embedding.self_test import SelfTest
from pgqueue_embed.embedding.transfers import Raw
from pgqueue_embed.errors import ModelError

# In tokens: by a core alone, a longer sequence of a large model may take as long as a lease.
_LONGEST_BESIDE_OTHERS = 1_024


class PlacedModel:
    """What an `EmbeddingModel` computes with; its attributes are described there."""

    def __init__(
        self, resolved: ResolvedModel, use: ModelUse = AS_ITS_FILES_SAY, *, compare: bool = False
    ) -> None:
        """Open the model on the CPU in fp32."""
        self.name = resolved.name
        self.revision = resolved.revision
        self._resolved = resolved
        self._use = use
        opened = self._open()
        self.notes = opened.notes
        self.canary_cosine = 1.0
        self._placed = Placement(network=opened.network)
        self._pass_threads: PassThreads | None = None
        # The network as long as it has the weights that it was opened with.
        self._unchanged: network.Network | None = opened.network
        self._documents = self._reader(network.DOCUMENT, use.document_prompt)
        self._queries = self._reader(network.QUERY, use.query_prompt, like=self._documents)
        self.notes += self._documents.notes + self._queries.notes
        self.tokenizer: Tokenizer = self._documents.tokenizer
        chunks = canaries.canary_chunks(self.tokenizer, self.content_budget)
        self._canaries = CanaryCheck(chunks, self.sequence_tokens)
        with network.failing_clearly(f"model {self.name} fails on known texts"):
            self.facts = learn_facts(
                self._network,
                self._documents,
                self._queries,
                self._test_itself(compare),
                resolved,
                pooling=use.pooling,
                stray_weights=opened.stray_weights,
            )
        self._documents.computes_alone = self.facts.computed_alone
        self._queries.computes_alone = self.facts.computed_alone
        self.dimensions = self.facts.dimensions

    def _open(self, *, by_library: bool = False) -> network.Opened:
        return open_network(self._resolved, self._use, by_library=by_library)

    def _reader(
        self, task: str, prompt: str | None, *, like: TaskReader | None = None
    ) -> TaskReader:
        return TaskReader(
            self._network,
            task,
            self.name,
            prompt=prompt,
            control_tokens=self._use.control_tokens,
            like=like,
        )

    @property
    def device(self) -> str:
        """The device in use."""
        return self._placed.device

    @property
    def passes_at_once(self) -> int:
        """How many batches the device computes at the same time: on a CPU one on each core."""
        if kind_of(self.device) != "cpu" or not self._network.is_stateless:
            return 1
        if self._pass_threads is None:
            self._pass_threads = PassThreads(cores(), self._placed.session)
        return self._pass_threads.count

    @property
    def precision(self) -> str:
        """The precision in use: fp32, fp16 or bf16."""
        return self._placed.variant.precision

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the model is made of; hashes its files on first use."""
        return fingerprint(self._resolved.path)

    @property
    def is_transformer(self) -> bool:
        """Whether documents are computed by a network; if not, looked up in a table."""
        return self._documents.is_transformer

    @property
    def max_sequence_tokens(self) -> int:
        """The tokens that the model reads of a document, special ones and prompt included."""
        return self._documents.max_tokens

    @property
    def content_budget(self) -> int:
        """The tokens of text that fit beside special tokens and the document prompt."""
        return max(1, self.max_sequence_tokens - self._documents.overhead)

    def whole_chunk(self, text: str) -> Chunk:
        """Return a text as one chunk, whatever its length."""
        return self._documents.whole(text)

    def sample_chunks(self, tokens: int) -> list[Chunk]:
        """Return chunks of plain text that the model reads as sequences of about ``tokens``."""
        budget = min(self.content_budget, max(1, tokens - self._documents.overhead))
        return canaries.full_chunks(self.tokenizer, budget)

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length of a chunk as the model reads it, or a little more."""
        return self._documents.sequence_tokens(len(chunk.token_ids))

    def session(self) -> AbstractContextManager[None]:
        """Hold this open around many calls of one thread, so that autocast casts weights once."""
        return self._placed.session()

    def verify(self, rows: int, length: int) -> None:
        """Compute canaries in a batch of this shape; raise WrongVectors if they differ.

        Metal has given wrong numbers in some shapes only, and after errors it did not raise.
        """
        cosine = self._canaries.agreement_in(self._plain_forward, rows, length)
        self.canary_cosine = min(self.canary_cosine, cosine)
        if cosine < LOWEST_COSINE:
            raise WrongVectors(
                f"{disagreement(self.device, self._placed.variant, cosine)} in batches of "
                f"{rows} x {length} tokens: this device computes wrong vectors; "
                "restart the machine or use --device cpu"
            )

    def _start(
        self, reader: TaskReader, chunks: Sequence[Chunk], length: int | None
    ) -> Callable[[], Raw]:
        """Start one batch beside others; returns what waits for the vectors and reads them."""
        is_long = length is not None and length > _LONGEST_BESIDE_OTHERS
        if self.passes_at_once > 1 and self._pass_threads is not None and not is_long:
            return self._pass_threads.start(partial(self._raw, reader, chunks, length))
        with self.session():
            return transfers.reading(self._compute(reader, chunks, length))

    def _plain_forward(self, chunks: Sequence[Chunk], length: int | None = None) -> Vectors:
        """Embed chunks in the model's own precision, whatever comes of it."""
        return unit_rows(self._raw(self._documents, chunks, length))

    def _settle(self, device: str, order: Sequence[Variant]) -> tuple[Variant, Sequence[Variant]]:
        """Take the first variant whose canaries agree; returns it, and those that did not.

        Raises ModelError where none does.
        """
        taken, refused = first_that_agrees(order, device, lambda each: self.place_in(device, each))
        self.notes += tuple(refused.values())
        if taken is None:
            elsewhere = "" if kind_of(device) == "cpu" else "--device cpu or "
            raise ModelError(
                f"model {self.name}: {self.notes[-1]}; use {elsewhere}another --precision"
            )
        return taken, list(refused)

    def place_in(self, device: str, variant: Variant) -> float:
        """Place the model, and return the lowest cosine of its canaries to fp32 on the CPU."""
        if (device, variant) == ("cpu", FP32):
            self._place(device, variant)
            self.canary_cosine = 1.0  # what the others are compared with
            return self.canary_cosine
        self._canaries.complete(self._plain_forward)
        cosine = self._placed_cosine(device, variant)
        if cosine < variant.lowest_cosine and self._canaries.are_kept:
            # Another version of a library may have computed them: those of now decide.
            self._place("cpu", FP32)
            self._canaries.learn(self._plain_forward)
            cosine = self._placed_cosine(device, variant)
        self.canary_cosine = cosine
        return cosine

    def _placed_cosine(self, device: str, variant: Variant) -> float:
        self._place(device, variant)
        at_once = ON_CPU if kind_of(device) == "cpu" else None
        return self._canaries.agreement(self._plain_forward, at_once)

    def _place(self, device: str, variant: Variant) -> None:
        if self._pass_threads is not None:
            self._pass_threads.close()  # weights change where they lie
            self._pass_threads = None
        opened, self._unchanged = self._unchanged or self._open().network, None
        self._placed = place(opened, device, variant)
        self._unchanged = None if variant.changes_weights else opened
        self._documents, self._queries = (
            each.moved_to(opened) for each in (self._documents, self._queries)
        )

    @property
    def _network(self) -> network.Network:
        return self._placed.network

    def _compute(
        self, reader: TaskReader, chunks: Sequence[Chunk], length: int | None, *, device: str = ""
    ) -> Any:
        """Start one batch of a reader; returns raw vectors, float32, on `device` or its own."""
        return reader.vectors(chunks, length, device or self.device)

    def _test_itself(self, compare: bool) -> tuple[SelfTest, SelfTest]:
        """Embed known texts, and compare with the library where it is at work, or is to be."""
        chunks = self._canaries.chunks
        numbers = self_test.shortest(chunks)
        own = np.concatenate([self._raw(self._documents, [chunks[n]]) for n in numbers])
        self._canaries.remember(dict(zip(numbers, unit_rows(own), strict=True)))
        library = self._open(by_library=True).network if compare else self._network
        if not isinstance(library, LibraryNetwork):
            test = SelfTest.of(own)
            return test, test
        documents, queries = (
            self_test.compare_with_library(reader, chunks, library, self._raw)
            for reader in (self._documents, self._queries)
        )
        return documents, queries

    def _raw(self, reader: TaskReader, chunks: Sequence[Chunk], length: int | None = None) -> Raw:
        """Embed one batch; returns the vectors as the network gives them."""
        with self.session():
            return transfers.on_host(self._compute(reader, chunks, length))
