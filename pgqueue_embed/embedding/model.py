"""One embedding model on one device: from chunks or queries to unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import canaries, network, precision, self_test
from pgqueue_embed.embedding.devices import choose_device, configure_device, kind_of
from pgqueue_embed.embedding.facts import learn_facts
from pgqueue_embed.embedding.fingerprint import Fingerprint, fingerprint
from pgqueue_embed.embedding.library_network import LibraryNetwork
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY, ModelUse
from pgqueue_embed.embedding.opening import open_network
from pgqueue_embed.embedding.reader import Reader
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.rows import (
    NonFiniteVectors,
    TooLong,
    Vectors,
    WrongVectors,
    agreement,
    unit_rows,
)
from pgqueue_embed.embedding.self_test import Raw, SelfTest
from pgqueue_embed.embedding.shapes import TABLE_LOOK_UP, limits_for
from pgqueue_embed.errors import ModelError, UsageError
from pgqueue_embed.log import get_logger

# Canaries have all lengths: in one batch two thirds of its tokens would be padding, which a CPU
# computes for seconds whenever a model is opened.
_CANARIES_AT_ONCE = 2
_LONGEST_TRY = 4_096
# In fp32 on a CPU, a longer one of a large model may take as long as a lease.
_LONGEST_SAMPLE = 512
SAMPLED_BATCHES = 16

Read = Callable[[], Vectors]


class EmbeddingModel:
    """A loaded model. Not for two threads at once: a `DeviceThread` owns it in a worker.

    Attributes: ``name``, ``revision``; ``device`` and ``precision`` in use; ``dimensions`` of a
    vector; ``max_sequence_tokens`` that the model reads of a document; ``tokenizer`` of documents,
    a private copy; ``facts``, all that was learnt of it; ``limits``, how large its batches should
    be; ``notes``, sentences for the person at the screen; ``chunks_in_fp32``, how many chunks a
    lower precision had no vector for.
    """

    def __init__(
        self, resolved: ResolvedModel, use: ModelUse = AS_ITS_FILES_SAY, *, compare: bool = False
    ) -> None:
        """Open the model on the CPU in fp32; use `load` to place it on a device."""
        self.name = resolved.name
        self.revision = resolved.revision
        self.device = "cpu"
        self.precision = "fp32"
        self.limits = limits_for("cpu")
        self._resolved = resolved
        self._use = use
        opened = self._open()
        self.notes = opened.notes
        self.chunks_in_fp32 = 0
        self._requested = "fp32"
        self._samples_left = 0
        self._whole: Any = None
        self._network = opened.network
        self._documents = self._reader(network.DOCUMENT, use.document_prompt)
        self._queries = self._reader(network.QUERY, use.query_prompt, like=self._documents)
        self.notes += self._documents.notes + self._queries.notes
        self.tokenizer: Tokenizer = self._documents.tokenizer
        self._canaries = canaries.canary_chunks(self.tokenizer, self.content_budget)
        self._references: dict[int, Vectors] = {}
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
        self.dimensions = self.facts.dimensions

    def _open(self, *, by_library: bool = False) -> network.Opened:
        return open_network(self._resolved, self._use, by_library=by_library)

    def _reader(self, task: str, prompt: str | None, *, like: Reader | None = None) -> Reader:
        return Reader(
            self._network,
            task,
            self.name,
            prompt=prompt,
            control_tokens=self._use.control_tokens,
            like=like,
        )

    @classmethod
    def load(
        cls,
        resolved: ResolvedModel,
        *,
        device: str = "auto",
        precision: str = "auto",
        use: ModelUse = AS_ITS_FILES_SAY,
        compare: bool = False,
    ) -> EmbeddingModel:
        """Load a model and place it where and how its canaries agree with fp32 on the CPU.

        ``device`` is auto, mps, cuda, cuda:N or cpu; ``precision`` auto, fp32, fp16 or bf16. With
        ``compare`` its vectors are compared with the library's, be they proved for its kind or not.
        Raises UsageError for what this machine does not have, ModelError for a model that
        cannot be loaded or computes wrong vectors here.
        """
        chosen = choose_device(device)
        model = cls(resolved, use, compare=compare)
        if device == "auto" and not model.is_transformer:
            chosen = "cpu"  # a table look-up: moving the ids costs more than it saves
        configure_device(chosen)
        model._requested = precision
        model._settle(chosen, precision)
        model.limits = limits_for(kind_of(chosen)) if model.is_transformer else TABLE_LOOK_UP
        return model

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

    def forward(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Vectors:
        """Embed chunks in one device batch; returns float32 unit vectors (n, dimensions).

        ``length`` pads every sequence to that many tokens. Raises RecordFault for a chunk
        longer than the model reads and NonFiniteVectors for rows without a usable vector.
        """
        return self.launch(chunks, length=length)()

    def launch(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Read:
        """Start a `forward` without waiting for a GPU; call what it returns for the vectors.

        Raises RecordFault as `forward` does; the read raises NonFiniteVectors. Rows that a lower
        precision has no vector for, because a number grew too large for it, are computed in fp32.
        """
        read, launched_in = self._start(chunks, length), self.precision

        def read_all() -> Vectors:
            raw = read()
            if self.precision == launched_in:
                vectors = self._completed(chunks, raw)
                if self._sample_agrees(chunks, vectors):
                    return vectors
            return self.forward(chunks, length=length)

        return read_all

    def _completed(self, chunks: Sequence[Chunk], raw: Raw) -> Vectors:
        """Return the vectors of ``raw``, where a lower precision failed those in fp32."""
        try:
            return unit_rows(raw)
        except NonFiniteVectors as fault:
            if self.precision == "fp32":
                raise
            rows = list(fault.rows)
        # A batch may hold a chunk several times, so that it has the shape of others.
        distinct = {chunks[row].text: row for row in rows}
        computed = self._in_fp32([chunks[row] for row in distinct.values()])
        of_text = dict(zip(distinct, computed, strict=True))
        raw = raw.copy()
        raw[rows] = [of_text[chunks[row].text] for row in rows]
        vectors = unit_rows(raw)
        self._count_in_fp32(len(distinct))
        return vectors

    def _count_in_fp32(self, chunks: int) -> None:
        if not self.chunks_in_fp32:
            get_logger().warning(
                "numbers grow too large for this precision; such chunks are computed in fp32",
                model=self.name,
                precision=self.precision,
            )
        self.chunks_in_fp32 += chunks

    def sample_batches(self, batches: int = SAMPLED_BATCHES) -> None:
        """Compare a chunk of each of the next ``batches`` with fp32, before it is given away.

        Canaries are known texts; these are the user's. Below the least cosine, a precision that was
        chosen here is given up for fp32, and one that was asked for raises WrongVectors.
        """
        self._samples_left = batches

    def _sample_agrees(self, chunks: Sequence[Chunk], vectors: Vectors) -> bool:
        """Compare the shortest chunk of a batch; returns False once the precision is another."""
        if not self._samples_left or self.precision == "fp32":
            return True
        row = min(range(len(chunks)), key=lambda row: len(chunks[row].token_ids))
        if self.sequence_tokens(chunks[row]) > _LONGEST_SAMPLE:
            return True
        self._samples_left -= 1
        sampled = vectors[row : row + 1]
        cosine = agreement(lambda: unit_rows(self._in_fp32([chunks[row]])), sampled)
        if not (self._samples_left or self.chunks_in_fp32):
            self._whole = None
        if cosine < precision.LOWEST_COSINE:
            self._give_up_precision(cosine)
        return cosine >= precision.LOWEST_COSINE

    def _give_up_precision(self, cosine: float) -> None:
        reason = precision.disagreement(self.device, self.precision, cosine)
        if self._requested != "auto":
            raise WrongVectors(f"{self.name}: {reason} for a chunk of yours; give --precision fp32")
        get_logger().warning("precision given up for fp32", model=self.name, reason=reason)
        self._settle(self.device, "fp32")

    def _start(self, chunks: Sequence[Chunk], length: int | None) -> Callable[[], Raw]:
        with self.session():
            raw = self._compute(self._documents, chunks, length)
        return lambda: network.on_host(raw)

    def _in_fp32(self, chunks: Sequence[Chunk]) -> Raw:
        """Compute chunks one at a time in fp32: on the CPU where the weights are halved here."""
        import torch

        reader, device = self._documents, self.device
        if self.precision == "fp16":
            self._whole = self._whole or self._open().network
            reader, device = reader.moved_to(self._whole), "cpu"
        with torch.no_grad(), torch.autocast(kind_of(device), enabled=False):
            raw = [self._compute(reader, [chunk], None, device=device) for chunk in chunks]
        return np.concatenate([network.on_host(each) for each in raw])

    def _plain_forward(self, chunks: Sequence[Chunk], length: int | None = None) -> Vectors:
        """Embed chunks in the model's own precision, whatever comes of it."""
        return unit_rows(self._start(chunks, length)())

    def encode_query(self, text: str) -> Vectors:
        """Embed one search query, with the query prompt; returns shape (dimensions,).

        Raises UsageError for one that is longer than the model reads.
        """
        try:
            with self.session():
                raw = self._compute(self._queries, [self._queries.whole(text)], None)
        except TooLong as error:
            raise UsageError(
                f"the query has {error.tokens}, {self.name} reads {error.limit}"
            ) from None
        vector: Vectors = unit_rows(network.on_host(raw))[0]
        return vector

    def try_chunk_of(self, tokens: int) -> None:
        """Let the model read a document's chunk of ``tokens``; raises ModelError if it cannot.

        Of very long ones only the beginning, which would take minutes to compute.
        """
        length = min(
            self._documents.sequence_tokens(tokens), self.max_sequence_tokens, _LONGEST_TRY
        )
        try:
            with self.session():
                features = self._documents.features_of_length(length, self.device)
                self._network.vectors(features, network.DOCUMENT)
        except Exception as error:  # torch has many; each means that such chunks cannot be had
            reason = str(error).strip().split("\n")[0]
            raise ModelError(
                f"model {self.name} fails on a sequence of {length} tokens: {reason};"
                " give a smaller --chunk-size"
            ) from error

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold this open around many calls of one thread, so that bf16 casts weights once."""
        import torch

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            kind, wanted = kind_of(self.device), self.precision == "bf16"
            if wanted or torch.is_autocast_enabled(kind):
                autocast = torch.autocast(kind, dtype=torch.bfloat16, enabled=wanted)
                stack.enter_context(autocast)
            yield

    def verify(self, rows: int, length: int) -> None:
        """Compute canaries in a batch of this shape; raise WrongVectors if they differ.

        Metal has given wrong numbers in some shapes only, and after errors it did not raise.
        """
        numbers = sorted(self._references)
        lengths = [self.sequence_tokens(self._canaries[number]) for number in numbers]
        picked = [numbers[n] for n in canaries.of_shape(lengths, rows, length)]
        chunks = [self._canaries[n] for n in picked]
        references = np.stack([self._references[n] for n in picked])
        cosine = agreement(lambda: self._plain_forward(chunks, length), references)
        if cosine < precision.LOWEST_COSINE:
            raise WrongVectors(
                f"{precision.disagreement(self.device, self.precision, cosine)} in batches of "
                f"{rows} x {length} tokens: this device computes wrong vectors; "
                "restart the machine or use --device cpu"
            )

    def _of_canaries(self) -> Vectors:
        """Embed all canaries; on a GPU in one batch, since Metal compiles every new shape."""
        lengths = [self.sequence_tokens(chunk) for chunk in self._canaries]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        size = _CANARIES_AT_ONCE if kind_of(self.device) == "cpu" else len(order)
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        vectors = [self._plain_forward([self._canaries[n] for n in batch]) for batch in batches]
        in_order: Vectors = np.concatenate(vectors)[np.argsort(order)]
        return in_order

    def _settle(self, device: str, requested: str) -> None:
        """Take the first precision whose canaries agree, noting those that did not."""
        for name in precision.candidates(device, requested):
            if (device, name) == ("cpu", "fp32"):
                self._place(device, name)
                return  # what the others are compared with
            if len(self._references) < len(self._canaries):
                self._references = dict(enumerate(self._of_canaries()))
            self._place(device, name)
            wanted = np.stack([self._references[n] for n in range(len(self._canaries))])
            cosine = agreement(self._of_canaries, wanted)
            if cosine >= precision.LOWEST_COSINE:
                return
            self.notes += (precision.disagreement(device, name, cosine),)
        elsewhere = "" if kind_of(device) == "cpu" else "--device cpu or "
        raise ModelError(f"model {self.name}: {self.notes[-1]}; use {elsewhere}another --precision")

    def _place(self, device: str, name: str) -> None:
        if self.precision == "fp16":
            self._network = self._open().network
            self._documents, self._queries = (
                each.moved_to(self._network) for each in (self._documents, self._queries)
            )
        self.device, self.precision = device, name
        if name == "fp16":
            self._network.half()
        self._network.to(device)

    def _compute(
        self, reader: Reader, chunks: Sequence[Chunk], length: int | None, *, device: str = ""
    ) -> Any:
        """Start one batch of a reader; returns raw vectors, float32, on `device` or its own."""
        return reader.vectors(chunks, length, device or self.device)

    def _test_itself(self, compare: bool) -> tuple[SelfTest, SelfTest]:
        """Embed known texts, and compare with the library where it is at work, or is to be."""
        numbers = self_test.shortest(self._canaries)
        own = np.concatenate([self._raw(self._documents, [self._canaries[n]]) for n in numbers])
        self._references = dict(zip(numbers, unit_rows(own), strict=True))
        library = self._open(by_library=True).network if compare else self._network
        if not isinstance(library, LibraryNetwork):
            test = SelfTest.of(own)
            return test, test
        documents, queries = (
            self_test.compare(reader, self._canaries, library, self._raw)
            for reader in (self._documents, self._queries)
        )
        return documents, queries

    def _raw(self, reader: Reader, chunks: Sequence[Chunk], length: int | None = None) -> Raw:
        """Embed one batch; returns the vectors as the network gives them."""
        with self.session():
            return network.on_host(self._compute(reader, chunks, length))
