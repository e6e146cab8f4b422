"""A cross-encoder on one device: how well each of some texts answers a query."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.embedding import folder
from pgqueue_embed.embedding.devices import (
    choose_device,
    configure_device,
    is_out_of_memory,
    kind_of,
    release_memory,
)
from pgqueue_embed.embedding.network import failing_clearly
from pgqueue_embed.embedding.quiet import hear
from pgqueue_embed.embedding.resolve import ResolvedModel, full_name, resolve_model
from pgqueue_embed.embedding.shapes import limits_for
from pgqueue_embed.embedding.weights import loading_reports, refuse_random_weights
from pgqueue_embed.errors import ModelError
from pgqueue_embed.log import get_logger

# Two threads at once make Metal abort; and each of them would have the device's memory.
_device_lock = threading.Lock()

# A comparison of two takes two; of more, the one that came first is forgotten.
MOST_MODELS = 2

_loaded: dict[tuple[str, str], CrossEncoder] = {}


def cross_encoder(reference: str, device: str = "auto") -> CrossEncoder:
    """Return the cross-encoder of a folder or a name, loaded unless it is at hand already.

    ``device`` is auto, mps, cuda, cuda:N or cpu. Raises ModelError for what is no cross-encoder or
    cannot be loaded, UsageError for a device that this machine does not have.
    """
    key = (full_name(reference), device)
    with _device_lock:
        if key not in _loaded:
            resolved = resolve_model(reference, kind=folder.CROSS_ENCODER)
            made = CrossEncoder(resolved, choose_device(device))
            while len(_loaded) >= MOST_MODELS:
                del _loaded[next(iter(_loaded))]
            _loaded[key] = made
        return _loaded[key]


class CrossEncoder:
    """A model of sentence-transformers' CrossEncoder, in fp32. Safe to call from many threads."""

    def __init__(self, resolved: ResolvedModel, device: str) -> None:
        """Load the model; raises ModelError if it cannot be."""
        self.name = resolved.name
        self._device = device
        self._limits = limits_for(kind_of(device))
        self._model = _opened(resolved)
        configure_device(device)
        self._model.to(device)

    def scores(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return how well each text answers the query, more for better; shape (len(texts),).

        Raises ModelError where the model fails, or has no score that is a number.
        """
        if not texts:
            return np.empty(0, np.float32)
        pairs = [(query, text) for text in texts]
        with _device_lock:
            found = self._predicted(pairs, self._longest(pairs))
        if not np.isfinite(found).all():
            raise ModelError(f"model {self.name} has no score for some texts: NaN or infinity")
        return found

    def _longest(self, pairs: Sequence[tuple[str, str]]) -> int:
        """Return the tokens of the longest pair as the model reads it; says it if any is cut."""
        with hear():
            read = self._model.tokenizer(list(map(list, pairs)), truncation=False)["input_ids"]
        lengths, limit = [len(each) for each in read], self._model.max_seq_length
        if limit is None:
            return max(lengths)
        cut = sum(length > limit for length in lengths)
        if cut:
            get_logger().warning(
                "the ends of some texts are not compared: with the query, they are longer than"
                " the model reads",
                model=self.name,
                texts=cut,
                of=len(pairs),
                tokens=limit,
            )
        return min(int(limit), max(lengths))

    def _predicted(self, pairs: Sequence[tuple[str, str]], length: int) -> NDArray[np.float32]:
        """Score pairs in batches that the device's memory holds, smaller ones if need be."""
        while True:
            rows = self._limits.rows_at(length)
            try:
                found = self._model.predict(pairs, batch_size=rows, show_progress_bar=False)
            except Exception as error:  # torch has many; out of memory alone has a way out
                if not is_out_of_memory(error) or rows == 1:
                    raise ModelError(
                        f"model {self.name} fails on pairs of {length} tokens on {self._device}:"
                        f" {str(error).strip().splitlines()[0]}"
                    ) from error
                release_memory(self._device)
                self._limits = self._limits.halved(rows, length)
            else:
                return np.asarray(found, np.float32)


# What a pair of texts is scored by that the weights are tried out with.
TRIAL = [("a pump", "The pump stopped."), ("a pump", "Nothing was found.")]


def _opened(resolved: ResolvedModel) -> Any:
    """Load a model on the CPU: loading on Metal crashes. Runs no code of its own."""
    name = resolved.name
    with hear() as heard, loading_reports() as reports, failing_clearly(f"model {name} fails"):
        import torch
        from sentence_transformers import CrossEncoder as LibraryModel

        model = LibraryModel(
            str(resolved.path),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
        model.float().eval()

        def score() -> NDArray[np.float32]:
            return np.asarray(model.predict(TRIAL, show_progress_bar=False), np.float32)

        refuse_random_weights(model, reports, name, score)
        shape = score().shape
    for note in heard.notes(name):
        get_logger().warning("of a model", model=name, says=note)
    if len(shape) != 1:
        raise ModelError(
            f"model {name} has {shape[-1]} scores for a pair of texts, as a classifier has;"
            " re-ranking takes a cross-encoder, which has one"
        )
    return model
