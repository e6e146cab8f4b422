"""One embedding model on one device: from chunks or queries to unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import cycle, islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.embedding import canaries, network, precision
from pgqueue_embed.embedding.devices import choose_device, configure_device, kind_of
from pgqueue_embed.embedding.fingerprint import Fingerprint, fingerprint
from pgqueue_embed.embedding.inputs import Frame, keeps_ids, learn_frame
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.embedding.rows import (
    NonFiniteVectors,
    Vectors,
    WrongVectors,
    lowest_cosine,
    unit_rows,
)
from pgqueue_embed.embedding.shapes import TABLE_LOOK_UP, limits_for
from pgqueue_embed.errors import ModelError, RecordFault, UsageError

# Feeding ids must give the vectors of feeding texts; what differs is rounding.
_SAME_VECTORS = 0.9999
# Canaries have all lengths: in one batch two thirds of its tokens would be padding, which a CPU
# computes for seconds whenever a model is opened.
_CANARIES_AT_ONCE = 2

Read = Callable[[], Vectors]


class EmbeddingModel:
    """A loaded model. Not for two threads at once: a `DeviceThread` owns it in a worker.

    Attributes: ``name``, ``revision``; ``device`` and ``precision`` in use; ``dimensions`` of a
    vector; ``max_sequence_tokens`` that the model reads; ``document_prompt`` and
    ``query_prompt``, "" for none; ``tokenizer``, a private copy, or None for models without
    one; ``exact_ids``, whether chunk ids are fed as they are (if not, texts are); ``limits``, how
    large its batches should be; ``notes``, sentences for the person at the screen.
    """

    def __init__(self, resolved: ResolvedModel) -> None:
        """Open the model on the CPU in fp32; use `load` to place it on a device."""
        self.name = resolved.name
        self.revision = resolved.revision
        self.device = "cpu"
        self.precision = "fp32"
        self.limits = limits_for("cpu")
        self.notes: tuple[str, ...] = ()
        self._path = resolved.path
        self._network: Any = network.open_network(resolved.path, resolved.name)
        self.is_transformer = network.is_transformer(self._network)
        self.max_sequence_tokens = network.max_sequence_tokens(self._network)
        self.document_prompt, self.query_prompt = network.prompts(self._network)
        own = network.fast_tokenizer(self._network)
        self.tokenizer: Tokenizer | None = None if own is None else private_copy(own)
        self._frame = self._learn_frame()
        self._canaries = canaries.canary_chunks(self.tokenizer, self.content_budget)
        self.exact_ids = False
        self._references = self._of_canaries(self.forward)
        self.exact_ids = self._ids_give_the_same_vectors()
        self.dimensions = int(self._references.shape[1])

    @classmethod
    def load(
        cls, resolved: ResolvedModel, *, device: str = "auto", precision: str = "auto"
    ) -> EmbeddingModel:
        """Load a model and place it where and how its canaries agree with fp32 on the CPU.

        ``device`` is auto, mps, cuda, cuda:N or cpu; ``precision`` auto, fp32, fp16 or bf16.
        Raises UsageError for what this machine does not have, ModelError for a model that
        cannot be loaded or computes wrong vectors here.
        """
        chosen = choose_device(device)
        model = cls(resolved)
        if device == "auto" and not model.is_transformer:
            chosen = "cpu"  # a table look-up: moving the ids costs more than it saves
        configure_device(chosen)
        model._settle(chosen, precision)
        model.limits = limits_for(kind_of(chosen)) if model.is_transformer else TABLE_LOOK_UP
        return model

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the model is made of; hashes its files on first use."""
        return fingerprint(self._path)

    def sample_chunks(self, tokens: int) -> list[Chunk]:
        """Return chunks of plain text that the model reads as sequences of about ``tokens``."""
        budget = min(self.content_budget, max(1, tokens - self._overhead))
        return canaries.full_chunks(self.tokenizer, budget)

    @property
    def content_budget(self) -> int:
        """The tokens of text that fit beside special tokens and the document prompt."""
        return max(1, self.max_sequence_tokens - self._overhead)

    def sequence_tokens(self, chunk: Chunk) -> int:
        """Return the length of a chunk as the model reads it."""
        return len(chunk.token_ids) + self._overhead

    @cached_property
    def _overhead(self) -> int:
        if self._frame is not None:
            return self._frame.size
        # Prompt and text may share a token, so that their sum is no more than a good estimate.
        return self._count_tokens([self.document_prompt])[0] + 1 if self.is_transformer else 0

    def forward(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Vectors:
        """Embed chunks in one device batch; returns float32 unit vectors (n, dimensions).

        ``length`` pads every sequence to that many tokens. Raises RecordFault for a chunk
        longer than the model reads and NonFiniteVectors for rows without a usable vector.
        """
        return self.launch(chunks, length=length)()

    def launch(self, chunks: Sequence[Chunk], *, length: int | None = None) -> Read:
        """Start a `forward` without waiting for a GPU; call what it returns for the vectors.

        Raises RecordFault as `forward` does; the read raises NonFiniteVectors.
        """
        with self.session():
            raw = self._from_ids(chunks, length) if self.exact_ids else self._from_texts(chunks)
        return lambda: unit_rows(network.on_host(raw))

    def encode_query(self, text: str) -> Vectors:
        """Embed one search query, with the query prompt; returns shape (dimensions,)."""
        tokens = self._count_tokens([self.query_prompt + text])[0]
        if tokens > self.max_sequence_tokens:
            raise UsageError(
                f"the query has {tokens} tokens, {self.name} reads {self.max_sequence_tokens}"
            )
        with self.session():
            raw = self._encode(self._network.encode_query, [text], self.query_prompt)
        vector: Vectors = unit_rows(raw)[0]
        return vector

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold this open around many calls of one thread, so that bf16 casts weights once."""
        import torch

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.precision == "bf16":
                kind = kind_of(self.device)
                stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
            yield

    def verify(self, rows: int, length: int) -> None:
        """Compute canaries in a batch of this shape; raise WrongVectors if they differ.

        Metal has given wrong numbers in some shapes only, and after errors it did not raise.
        """
        order = sorted(range(len(self._canaries)), key=self._canary_tokens, reverse=True)
        fitting = [n for n in order if self._canary_tokens(n) <= length]
        picked = list(islice(cycle(fitting or order[-1:]), rows))
        chunks = [self._canaries[n] for n in picked]
        cosine = _agreement(lambda: self.forward(chunks, length=length), self._references[picked])
        if cosine < precision.LOWEST_COSINE:
            raise WrongVectors(
                f"{precision.disagreement(self.device, self.precision, cosine)} in batches of "
                f"{rows} x {length} tokens: this device computes wrong vectors; "
                "restart the machine or use --device cpu"
            )

    def _canary_tokens(self, number: int) -> int:
        return self.sequence_tokens(self._canaries[number])

    def _of_canaries(self, embed: Callable[[Sequence[Chunk]], Vectors]) -> Vectors:
        """Embed all canaries; on a GPU in one batch, since Metal compiles every new shape."""
        order = sorted(range(len(self._canaries)), key=self._canary_tokens)
        size = _CANARIES_AT_ONCE if kind_of(self.device) == "cpu" else len(order)
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        vectors = [embed([self._canaries[n] for n in batch]) for batch in batches]
        in_order: Vectors = np.concatenate(vectors)[np.argsort(order)]
        return in_order

    def _settle(self, device: str, requested: str) -> None:
        """Take the first precision whose canaries agree, noting those that did not."""
        for name in precision.candidates(device, requested):
            self._place(device, name)
            if (device, name) == ("cpu", "fp32"):
                return  # what the others are compared with
            cosine = _agreement(lambda: self._of_canaries(self.forward), self._references)
            if cosine >= precision.LOWEST_COSINE:
                return
            self.notes += (precision.disagreement(device, name, cosine),)
        raise ModelError(
            f"model {self.name}: {self.notes[-1]}; use --device cpu or another precision"
        )

    def _place(self, device: str, name: str) -> None:
        if self.precision == "fp16":
            self._network = network.open_network(self._path, self.name)
        self.device, self.precision = device, name
        if name == "fp16":
            self._network.half()
        self._network.to(device)

    def _learn_frame(self) -> Frame | None:
        if self.tokenizer is None or not self.is_transformer:
            return None
        return learn_frame(self.tokenizer, self.document_prompt, network.padding_id(self._network))

    def _ids_give_the_same_vectors(self) -> bool:
        if self.tokenizer is None or self._frame is None:
            return False
        if not keeps_ids(self.tokenizer, self._frame, self.document_prompt, self._canaries):
            return False
        return lowest_cosine(self._of_canaries(self._by_ids), self._references) >= _SAME_VECTORS

    def _by_ids(self, chunks: Sequence[Chunk]) -> Vectors:
        with self.session():
            return unit_rows(network.on_host(self._from_ids(chunks, None)))

    def _from_ids(self, chunks: Sequence[Chunk], length: int | None) -> Any:
        import torch

        longest = max(self.sequence_tokens(chunk) for chunk in chunks)
        self._refuse_longer(longest)
        ids, mask = self._framed().batch(chunks, max(longest, length or 0))
        features = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if mask is not None:
            features["attention_mask"] = torch.from_numpy(mask).to(self.device)
        return self._network(features)["sentence_embedding"].float()

    def _framed(self) -> Frame:
        if self._frame is None:
            raise ModelError(f"model {self.name} has no rule to feed ids by")
        return self._frame

    def _from_texts(self, chunks: Sequence[Chunk]) -> Any:
        prompt = self.document_prompt
        texts = [chunk.text for chunk in chunks]
        self._refuse_longer(max(self._count_tokens([prompt + text for text in texts])))
        return self._encode(self._network.encode_document, texts, prompt)

    @staticmethod
    def _encode(encode: Any, texts: list[str], prompt: str) -> Any:
        return encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)

    def _count_tokens(self, texts: list[str]) -> list[int]:
        if self.tokenizer is None:
            return [0] * len(texts)
        return [len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts)]

    def _refuse_longer(self, longest: int) -> None:
        if longest > self.max_sequence_tokens:
            raise RecordFault(
                f"a chunk of {longest} tokens does not fit {self.name}, which reads "
                f"{self.max_sequence_tokens}: nothing is cut off silently"
            )


def _agreement(embed: Callable[[], Vectors], references: Vectors) -> float:
    """Return the lowest cosine of what is computed now to what it should be; 0 for no vector."""
    try:
        return lowest_cosine(embed(), references)
    except NonFiniteVectors:
        return 0.0
