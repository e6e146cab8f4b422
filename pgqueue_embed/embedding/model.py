"""One embedding model on one device: from chunks or queries to unit vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import network, transfers
from pgqueue_embed.embedding.choice import Choice
from pgqueue_embed.embedding.chooser import Chooser, learnt_key
from pgqueue_embed.embedding.contest import LONGEST_BATCH_SECONDS, Contest, Run
from pgqueue_embed.embedding.devices import (
    choose_device,
    configure_device,
    kind_of,
)
from pgqueue_embed.embedding.learnt import Memory
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY, ModelUse
from pgqueue_embed.embedding.placed_model import PlacedModel
from pgqueue_embed.embedding.placement import Placement, place
from pgqueue_embed.embedding.precision import (
    AUTO,
    FP32,
    LOWEST_COSINE,
    Variant,
    candidates,
    disagreement,
)
from pgqueue_embed.embedding.probe import in_a_line
from pgqueue_embed.embedding.reader import TEXTS, TaskReader
from pgqueue_embed.embedding.reads import as_done_as
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.rows import (
    NonFiniteVectors,
    TooLong,
    Vectors,
    WrongVectors,
    agreement,
    unit_rows,
)
from pgqueue_embed.embedding.shapes import TABLE_LOOK_UP, limits_for
from pgqueue_embed.embedding.transfers import Raw
from pgqueue_embed.embedding.working_clock import working_clock
from pgqueue_embed.errors import ModelError, UsageError
from pgqueue_embed.log import get_logger

_LONGEST_TRY = 4_096
# In fp32 on a CPU, a longer one of a large model may take as long as a lease.
_LONGEST_SAMPLE = 512
SAMPLED_BATCHES = 16

ReadVectors = Callable[[], Vectors]


class EmbeddingModel(PlacedModel):
    """A loaded model. Not for two threads at once: a `DeviceThread` owns it in a worker.

    Attributes: ``name``, ``revision``; ``device`` and ``precision`` in use; ``dimensions`` of a
    vector; ``max_sequence_tokens`` that the model reads of a document; ``tokenizer`` of documents,
    a private copy; ``facts``, all that was learnt of it; ``limits``, how large its batches should
    be; ``notes``, sentences for the person at the screen; ``chunks_in_fp32``, how many chunks a
    lower precision had no vector for; ``canary_cosine``, the lowest of its canaries to fp32 on the
    CPU since it computes as it does.
    """

    def __init__(
        self, resolved: ResolvedModel, use: ModelUse = AS_ITS_FILES_SAY, *, compare: bool = False
    ) -> None:
        """Open the model on the CPU in fp32; use `load` to place it on a device."""
        super().__init__(resolved, use, compare=compare)
        self.limits = limits_for("cpu")
        self.chunks_in_fp32 = 0
        self._requested = "fp32"
        self._chooser = Chooser((FP32,), "cpu", memory=None, key="")
        self._contest: Contest | None = None
        self._rival: Variant | None = None
        self._last_read = 0.0
        self._samples = self._samples_left = 0
        self._whole: network.Network | None = None

    @classmethod
    def load(
        cls,
        resolved: ResolvedModel,
        *,
        device: str = "auto",
        precision: str = "auto",
        use: ModelUse = AS_ITS_FILES_SAY,
        compare: bool = False,
        memory: Memory | None = None,
    ) -> EmbeddingModel:
        """Load a model and place it where and how its canaries agree with fp32 on the CPU.

        ``device`` is auto, mps, cuda, cuda:N or cpu; ``precision`` auto, fp32, fp16 or bf16. With
        ``compare`` its vectors are compared with the library's, be they proved for its kind or not.
        With a ``memory`` what it knows of this machine is used, and what real batches tell is kept.
        Raises UsageError for what this machine does not have, ModelError for a model that
        cannot be loaded or computes wrong vectors here.
        """
        chosen = choose_device(device)
        model = cls(resolved, use, compare=compare)
        if device == "auto" and not model.is_transformer:
            chosen = "cpu"  # a table look-up: moving the ids costs more than it saves
        configure_device(chosen)
        model._requested = precision
        model._choose(candidates(chosen, precision), chosen, memory)
        return model

    @classmethod
    def reference(
        cls, resolved: ResolvedModel, *, use: ModelUse = AS_ITS_FILES_SAY, compare: bool = False
    ) -> EmbeddingModel:
        """Load a model in fp32 on the CPU, by torch's own products: what others are compared with.

        It is there sooner than where faster ones are looked for: by a probe, and by all canaries,
        which a large model computes for seconds. Raises ModelError for a model that cannot be
        loaded.
        """
        device = choose_device("cpu")
        model = cls(resolved, use, compare=compare)
        model._choose((FP32,), device, None)
        return model

    def _choose(self, variants: Sequence[Variant], device: str, memory: Memory | None) -> None:
        if not self.is_transformer:
            # A look-up gains nothing from products that are faster.
            variants = variants if len(variants) == 1 else (FP32,)
            memory = None
        key = learnt_key(device, self._requested, self.fingerprint.digest) if memory else ""
        self._canaries.kept = memory.references(self._references_key()) if memory else None
        self._chooser = Chooser(variants, device, memory=memory, key=key)
        self._chooser.settle(*self._settle(device, self._chooser.order))
        self.limits = TABLE_LOOK_UP
        if self.is_transformer:
            self.limits = self._chooser.sized(limits_for(kind_of(device)))
            self._rival = self.choice.rival if memory else None
            self._chooser.keep()

    def _references_key(self) -> str:
        """Return the name of the canaries' vectors in fp32: what they depend on."""
        texts = (chunk.text for chunk in self._canaries.chunks)
        return " | ".join(
            (learnt_key("cpu", "fp32", self.fingerprint.digest), repr(self._use), *texts)
        )

    @property
    def choice(self) -> Choice:
        """What it computes in, and what else was tried."""
        return self._chooser.choice

    def keep_batch_size(self, batch_tokens: int) -> None:
        """Keep the size of batches, in tokens, that real ones have told."""
        self.limits = self.limits.settled(batch_tokens)
        self._chooser.keep(batch_tokens)

    def forward(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Vectors:
        """Embed chunks in one device batch; returns float32 unit vectors (n, dimensions).

        ``length`` pads every sequence to that many tokens. Raises RecordFault for a chunk
        longer than the model reads and NonFiniteVectors for rows without a usable vector.
        """
        return self._reading(chunks, length, partial(self._raw, self._documents, chunks, length))()

    def launch(self, chunks: Sequence[Chunk], *, length: int | None = None) -> ReadVectors:
        """Start a `forward` beside others; call what it returns for the vectors.

        It, or the read, raises what `forward` does. Rows that a lower precision has no vector for,
        because a number grew too large for it, are computed in fp32.
        """
        started = self._start(self._documents, chunks, length)
        return as_done_as(started, self._reading(chunks, length, started))

    def _reading(
        self, chunks: Sequence[Chunk], length: int | None, read: Callable[[], Raw]
    ) -> ReadVectors:
        """Return what reads the vectors of chunks, and looks how they were computed."""
        started, launched_in = time.monotonic(), self._placed

        def read_all() -> Vectors:
            raw = read()
            # A GPU computes first what was launched before.
            began, self._last_read = max(started, self._last_read), time.monotonic()
            seconds = self._last_read - began
            if self._placed is launched_in:
                vectors = self._completed(chunks, raw)
                if self._sample_agrees(chunks, vectors):
                    if seconds <= LONGEST_BATCH_SECONDS:
                        self._compare_rates(chunks, length)
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
        self._samples = self._samples_left = batches

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
        if cosine < LOWEST_COSINE:
            self._give_up_precision(cosine)
        return cosine >= LOWEST_COSINE

    def _give_up_precision(self, cosine: float) -> None:
        given_up = self._placed.variant
        reason = disagreement(self.device, given_up, cosine)
        if self._requested != AUTO:
            raise WrongVectors(f"{self.name}: {reason} for a chunk of yours; give --precision fp32")
        get_logger().warning("precision given up for fp32", model=self.name, reason=reason)
        self._rival = None
        order = [each for each in self._chooser.order if each.precision == "fp32"]
        taken, refused = self._settle(self.device, order)
        self._chooser.settle(taken, [*refused, given_up])
        # The next start would take it again, and its first batches may have no such text.
        self._chooser.keep()

    def _compare_rates(self, chunks: Sequence[Chunk], length: int | None) -> None:
        """Let the first full batches tell whether the next variant is faster, and take it then."""
        longest = max(self.sequence_tokens(chunk) for chunk in chunks)
        if self._rival is None or 2 * len(chunks) * longest < self.limits.max_tokens_per_batch:
            return
        rival = self._rival
        try:
            self._contest = self._contest or self._contest_with(rival)
            with working_clock(self.device) as clock:
                is_faster = self._contest.take_turn(chunks, length, clock)
        except Exception as error:  # noqa: BLE001 - the one in use works, whatever this one lacks
            get_logger().debug("variant not compared", variant=str(rival), reason=in_a_line(error))
            is_faster = False
        if is_faster is None:
            return
        self._contest = self._rival = None
        if is_faster:
            others = [each for each in self._chooser.order if each != rival]
            self._chooser.settle(*self._settle(self.device, [rival, *others]))
            # The user's texts have told of the other one.
            self._samples_left = self._samples
            get_logger().info(
                "computes otherwise: faster on real batches",
                model=self.name,
                computes=str(self.choice),
            )
        self._chooser.confirm()

    def _contest_with(self, rival: Variant) -> Contest:
        other = place(self._open().network, self.device, rival)
        reader = self._documents.moved_to(other.network)
        return Contest(_run(self._documents, self._placed), _run(reader, other))

    def _in_fp32(self, chunks: Sequence[Chunk]) -> Raw:
        """Compute chunks one at a time in fp32: on the CPU where the weights are halved here."""
        import torch

        reader, device = self._documents, self.device
        if self._placed.variant.changes_weights:
            self._whole = self._whole or self._open().network
            reader, device = reader.moved_to(self._whole), "cpu"
        with torch.no_grad(), torch.autocast(kind_of(device), enabled=False):
            raw = [self._compute(reader, [chunk], None, device=device) for chunk in chunks]
        return np.concatenate([transfers.on_host(each) for each in raw])

    def encode_query(self, text: str) -> Vectors:
        """Embed one search query, with the query prompt; returns shape (dimensions,).

        Raises UsageError for one that is longer than the model reads.
        """
        chunk = self.query_chunk(text)
        with self._saying_what_a_query_has():
            vector: Vectors = unit_rows(self._raw(self._queries, [chunk]))[0]
        return vector

    def query_chunk(self, text: str) -> Chunk:
        """Return a query as one chunk; raises UsageError for one longer than the model reads."""
        queries = self._queries
        chunk = queries.whole(text)
        # Where the library is asked to read it, it tells when the text is computed.
        tokens = 0 if queries.feeding == TEXTS else len(queries.sequence(text, chunk.token_ids))
        with self._saying_what_a_query_has():
            if tokens > queries.max_tokens:
                raise TooLong(self.name, tokens, queries.max_tokens)
        return chunk

    def query_tokens(self, chunk: Chunk) -> int:
        """Return the length of a query as the model reads it, or a little more."""
        return self._queries.sequence_tokens(len(chunk.token_ids))

    def launch_queries(self, chunks: Sequence[Chunk], *, length: int | None = None) -> ReadVectors:
        """Start a batch of queries, padded to ``length``; call what it returns for the vectors.

        In the model's own precision. It, or the read, raises TooLong or NonFiniteVectors.
        """
        read = self._start(self._queries, chunks, length)
        return as_done_as(read, lambda: unit_rows(read()))

    @contextmanager
    def _saying_what_a_query_has(self) -> Iterator[None]:
        try:
            yield
        except TooLong as error:
            raise UsageError(
                f"the query has {error.tokens}, {self.name} reads {error.limit}"
            ) from None

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


def _run(reader: TaskReader, placed: Placement) -> Run:
    """Return what computes chunks as a batch, and waits for them."""

    def run(chunks: Sequence[Chunk], length: int | None) -> None:
        with placed.session():
            transfers.on_host(reader.vectors(chunks, length, placed.device))

    return run
