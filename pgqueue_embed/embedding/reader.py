"""Reads the texts of one task, documents or queries, as the model itself does.

A reader feeds ids that it makes from the private copy of the tokenizer, for which control tokens in
a text are text. That they are what the library feeds is tried out on texts of all kinds whenever a
model is opened. Where the library's own way cannot be followed, it is asked to read every text.
Of a network that this package opens by itself, what is fed is what its files say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.embedding.inputs import Frame, Ids, find_frame, pad
from pgqueue_embed.embedding.joins import clean_joins, joining_samples
from pgqueue_embed.embedding.network import (
    UNLIMITED_TOKENS,
    Fed,
    Network,
    Part,
    failing_clearly,
)
from pgqueue_embed.embedding.rows import TooLong
from pgqueue_embed.embedding.tokenizer_check import check_copy, check_rows, control_tokens_of
from pgqueue_embed.embedding.transfers import to_device
from pgqueue_embed.errors import ModelError

IDS = "ids"  # those of a chunk, framed
JOINED = "ids of prompt and text together"
TEXTS = "texts"

_PROBE = "pump"
# Prompt and text may have a token or two more together than each by itself.
_JOIN_TOKENS = 2
# So many of the samples are fed by a call of their own.
_FED_ALONE = 12
# A text of so many words shows whether a model cuts that declares no limit.
_MANY_WORDS = 1 << 14

_SENTENCES = (
    "The infusion pump's alarm (model X-200) was silenced at 03:15 and then re-started.",
    "Temperature 37 °C, naïve co\u00f6perate, ﬁne, x²=4, 🙂🙂",
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。",
    "Устройство перестало работать. 장치가 멈췄습니다. توقف الجهاز.\n\nNext  paragraph",
)


class TaskReader:
    """Makes the features of one task's texts.

    Attributes: ``task``; ``name`` of the model; ``prompt``, "" for none; ``part`` of the network,
    which takes the features; ``tokenizer``, a private copy; ``max_tokens`` of a sequence that
    nothing is cut off from; ``overhead``, how many of them are not the text's; ``feeding``: IDS,
    JOINED or TEXTS; ``notes``, sentences for the person at the screen; ``computes_alone``, whether
    one chunk at a time is computed, whatever the batch.
    """

    def __init__(
        self,
        network: Network,
        task: str,
        name: str,
        *,
        prompt: str | None,
        control_tokens: bool,
        like: TaskReader | None = None,
    ) -> None:
        """Learn how texts of ``task`` are read; raises ModelError where none can be.

        What was learnt by ``like``, of another task, is taken where both read alike.
        """
        self.task = task
        self.feeding = TEXTS
        self.overhead = 0
        self.network = network
        self.name = name
        self.computes_alone = False
        self._frame: Frame | None = None
        self._joins: Callable[[str], bool] = bool
        self._special = True
        own_prompt = network.prompts.own(task)
        self.prompt = own_prompt if prompt is None else prompt
        self.part = self._part()
        tokenizer = self.part.tokenizer
        private = self.part.private_tokenizer
        if tokenizer is None or private is None:
            raise ModelError(
                f"model {name} has no fast tokenizer to cut documents by"
                f" ({self.part.name}): refused"
            )
        if self.is_transformer and self.part.padding_id is None:
            raise ModelError(
                f"model {name} names no padding token, without which sentence-transformers cannot"
                " embed a batch: set tokenizer.pad_token and save the model again"
            )
        self.tokenizer = private_copy(tokenizer, control_tokens=True) if control_tokens else private
        check_copy(tokenizer, self.tokenizer, name)
        check_rows(tokenizer, self.part.token_rows, name)
        self._controls = () if control_tokens else control_tokens_of(tokenizer)
        probe = self._feed(_PROBE)
        chosen = self._feed(_PROBE, own=True).ids
        as_named = self._feed(_PROBE, prompt=own_prompt).ids
        if chosen != as_named and not network.prompts.has_placeholder(task):
            raise ModelError(f"cannot tell which prompt model {name} puts in front of a {task}")
        self.notes: tuple[str, ...] = ()
        if prompt is None and network.prompts.is_overlooked(task):
            self.notes = (_of_overlooked_prompt(task, own_prompt),)
        self._constants = {k: v for k, v in probe.features.items() if not hasattr(v, "shape")}
        if like is not None and self._reads_as(like):
            self.feeding, self.overhead = like.feeding, like.overhead
            self._frame, self._joins, self._special = like._frame, like._joins, like._special
        else:
            self._learn(probe)
        self.max_tokens = self._measure_limit()
        # Not where every sequence is made full, by tokens that expand a query.
        self._tells_cuts = not self._is_full(probe.features)

    @property
    def is_transformer(self) -> bool:
        """Whether a Transformer reads the ids; if not, a table of vectors does."""
        return self.part.is_transformer

    @property
    def tokenizer_kind(self) -> str:
        """The kind of the tokenizer's model: WordPiece, BPE, Unigram or WordLevel."""
        return type(self.tokenizer.model).__name__

    def sequence_tokens(self, tokens: int) -> int:
        """Return how long a sequence is at most for a text of so many tokens of its own."""
        return tokens + self.overhead

    def ids_of(self, text: str) -> Ids:
        """Return the ids of a text alone, without special tokens."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def whole(self, text: str) -> Chunk:
        """Return a text as one chunk."""
        ids = self.ids_of(text).astype(np.int32)
        return Chunk(index=0, start=0, end=len(text), text=text, token_ids=ids)

    def sequence(self, text: str, ids: Any) -> Ids:
        """Return all ids that the model reads for a text, whose own are ``ids``."""
        if self._frame is not None and self._joins(text):
            return self._frame.around(ids)
        return np.array(self._joined(text), np.int64)

    def sequences(self, chunks: Sequence[Chunk]) -> list[Ids]:
        """Return all ids that the model reads for each chunk."""
        return [self.sequence(chunk.text, chunk.token_ids) for chunk in chunks]

    def vectors(self, chunks: Sequence[Chunk], length: int | None, device: str) -> Any:
        """Start to compute chunks, padded to ``length``; returns a float32 tensor on the device."""
        if self.computes_alone and (len(chunks) > 1 or length is not None):
            import torch

            return torch.cat([self.vectors([chunk], None, device) for chunk in chunks])
        vectors = self.network.vectors(self.features(chunks, length, device), self.task)
        return vectors[:, : self.network.truncate_dim].float()

    def features(self, chunks: Sequence[Chunk], length: int | None, device: str) -> dict[str, Any]:
        """Return what the network takes for chunks, padded to ``length``, on its device.

        Raises TooLong for a chunk longer than the model reads: nothing is cut off.
        """
        if self.feeding == TEXTS:
            return self._features_of_texts(chunks, device)
        frame = self._frame
        if frame is None or not all(self._joins(chunk.text) for chunk in chunks):
            return self._padded(self.sequences(chunks), length, device)
        longest = max(len(chunk.token_ids) for chunk in chunks) + frame.size
        self._refuse_longer(longest)
        contents = [chunk.token_ids for chunk in chunks]
        if not self.is_transformer:
            return self._looked_up(contents, device)
        ids, mask = frame.batch(contents, max(longest, length or 0), self._padding_id)
        return self._tensors(ids, mask, device)

    def features_of_length(self, length: int, device: str) -> dict[str, Any]:
        """Return what the network takes for some sequence of ``length`` tokens.

        Raises TooLong if the library cuts a text that is to have as many.
        """
        if self.feeding == TEXTS:
            words = (length - self.overhead) // len(self.ids_of(f" {_PROBE}"))
            return self.features([self.whole(" ".join([_PROBE] * max(1, words)))], None, device)
        return self._padded([np.resize(self.ids_of(_SENTENCES[0]), length)], length, device)

    def _padded(self, sequences: list[Ids], length: int | None, device: str) -> dict[str, Any]:
        longest = max(len(sequence) for sequence in sequences)
        self._refuse_longer(longest)
        if not self.is_transformer:
            return self._looked_up(sequences, device)
        return self._tensors(*pad(sequences, max(longest, length or 0), self._padding_id), device)

    def _tensors(self, ids: Ids, mask: Ids | None, device: str) -> dict[str, Any]:
        features = dict(self._constants, input_ids=to_device(ids, device))
        if mask is not None:
            features["attention_mask"] = to_device(mask, device)
        return features

    def _looked_up(self, contents: Sequence[NDArray[np.integer]], device: str) -> dict[str, Any]:
        """Return what a table takes: all ids in a row, and where each text begins."""
        begins = np.cumsum([0, *(len(each) for each in contents[:-1])])
        ids = np.concatenate(contents).astype(np.int64)
        return dict(
            self._constants,
            input_ids=to_device(ids, device),
            offsets=to_device(begins, device),
        )

    def _features_of_texts(self, chunks: Sequence[Chunk], device: str) -> dict[str, Any]:
        features = self._library_features([chunk.text for chunk in chunks], device)
        if not self._tells_cuts:
            longest = max(len(chunk.token_ids) for chunk in chunks)
            self._refuse_longer(self.sequence_tokens(longest))
        elif self._is_full(features):
            raise TooLong(self.name, None, self.max_tokens)
        return features

    def _is_full(self, features: dict[str, Any]) -> bool:
        mask = features.get("attention_mask")
        return mask is not None and int(mask.sum(-1).max()) >= self.max_tokens

    def _refuse_longer(self, longest: int) -> None:
        if longest > self.max_tokens:
            raise TooLong(self.name, longest, self.max_tokens)

    @cached_property
    def _padding_id(self) -> int:
        return self.part.padding_id or 0

    def _library_features(self, texts: Sequence[str], device: str) -> dict[str, Any]:
        """Return what the network takes for texts, as the library itself makes it."""
        features = self.network.features(self.task, list(texts), self.prompt)
        return {k: v.to(device) if hasattr(v, "to") else v for k, v in features.items()}

    def readable(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that the library reads as this reader does: without control tokens."""
        return [text for text in texts if not any(each in text for each in self._controls)]

    def fits(self, text: str) -> bool:
        """Tell whether the model reads all of a text."""
        return self.sequence_tokens(len(self.ids_of(text))) <= self.max_tokens

    def moved_to(self, network: Network) -> TaskReader:
        """Return this reader for the same model opened again."""
        moved = copy(self)
        moved.network = network
        return moved

    def ask_for_texts(self) -> None:
        """Let the library read every text from now on.

        It may make more tokens of one than the private copy, and cut what is too long. So the
        longest text leaves a token free: a sequence that is full is one that was cut.
        """
        self.feeding, self._frame = TEXTS, None
        self.overhead += 1

    def _part(self) -> Part:
        with failing_clearly(f"model {self.name} reads no {self.task}"):
            part = self.network.part(self.task)
        if not (part.is_transformer or part.is_table):
            raise ModelError(
                f"model {self.name} begins with {part.name}: only transformers and"
                " StaticEmbedding are supported"
            )
        return part

    def _feed(self, text: str, *, prompt: str | None = None, own: bool = False) -> Fed:
        wanted = None if own else (self.prompt if prompt is None else prompt)
        with failing_clearly(f"model {self.name} cannot read a text"):
            return self.network.feed(self.task, text, wanted)

    def _reads_as(self, other: TaskReader) -> bool:
        """Tell whether texts are read as those of another task are, by the same part."""
        return (
            self.part is other.part
            and self.prompt == other.prompt
            and all(self._feed(text).ids == other._feed(text).ids for text in (_PROBE, *_SENTENCES))
        )

    def _learn(self, probe: Fed) -> None:
        """Find the fastest way to feed what the library feeds."""
        cut = len(self._feed(" ".join(_SENTENCES * 20)).ids)
        fed = self._ids_fed([*joining_samples(), *_SENTENCES])
        samples = self.readable([text for text in fed if len(fed[text]) < cut])
        if not samples:
            raise ModelError(f"model {self.name} reads {cut} tokens of a {self.task}: too few")
        wanted = {text: fed[text] for text in samples}
        alone = {text: self.ids_of(text).tolist() for text in samples}
        frame = find_frame(self.ids_of(_PROBE).tolist(), probe.ids)
        self.overhead = max(len(wanted[text]) - len(alone[text]) for text in samples)
        self.overhead += _JOIN_TOKENS
        if _has_other_inputs(probe) or not self._learn_ids(frame, wanted, alone):
            self.ask_for_texts()

    def _ids_fed(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Return what the library feeds for each text.

        A call of its public method takes milliseconds. All texts are prepared in one batch, if that
        gives for some of each kind what such a call feeds.
        """
        some = [*texts[:: len(texts) // _FED_ALONE], *_SENTENCES]
        alone = {text: self._feed(text).ids for text in some}
        together = dict(zip(texts, self._ids_of_batch(texts), strict=False))
        if all(together.get(text) == alone[text] for text in some):
            return together
        return {text: self._feed(text).ids for text in texts}

    def _ids_of_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that the library makes of each text, none where it is another way."""
        with suppress(Exception):
            features = self.network.features(self.task, list(texts), self.prompt)
            ids, mask = features["input_ids"], features.get("attention_mask")
            if not self.is_transformer:
                return [each.tolist() for each in ids.tensor_split(features["offsets"][1:])]
            if mask is None:
                return [each.tolist() for each in ids]
            return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        return []

    def _learn_ids(
        self, frame: Frame | None, wanted: dict[str, list[int]], alone: dict[str, list[int]]
    ) -> bool:
        """Tell whether the library's ids can be made here, and remember how."""
        for special in (True, False):
            self._special = special
            if all(self._joined(text) == wanted[text] for text in wanted):
                self._learn_joins(frame, wanted, alone)
                return True
        if frame is None:
            return False
        if any(frame.around(alone[text]).tolist() != wanted[text] for text in wanted):
            return False
        self.feeding, self._frame, self.overhead = IDS, frame, frame.size
        return True

    def _learn_joins(
        self, frame: Frame | None, wanted: dict[str, list[int]], alone: dict[str, list[int]]
    ) -> None:
        """Feed framed ids in front of whose first character prompt and text part for certain."""
        self.feeding = JOINED
        always, joins = clean_joins(self.tokenizer, self.prompt)
        apart = [text for text in wanted if always or joins(text)]
        if frame is None or not apart:
            return
        if all(frame.around(alone[text]).tolist() == wanted[text] for text in apart):
            self.feeding, self._frame = IDS, frame
            if always:
                self.overhead = frame.size
            else:
                self._joins = joins

    def _joined(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(
            self.prompt + text, add_special_tokens=self._special
        ).ids
        return ids

    def _measure_limit(self) -> int:
        """Return how many tokens are read of a text; of a longer one the library cuts the rest."""
        declared = self.part.declared_tokens
        words = _MANY_WORDS if declared == UNLIMITED_TOKENS else declared
        text = " ".join([_PROBE] * (words + 2 * _JOIN_TOKENS))
        read = len(self._feed(text).ids)
        whole = self.sequence_tokens(len(self.ids_of(text))) - 2 * _JOIN_TOKENS
        return min(declared, read) if read < whole else declared


def _of_overlooked_prompt(task: str, prompt: str) -> str:
    return (
        f"each {task} gets the prompt {prompt!r} that the model's files name, as it is documented;"
        f" sentence-transformers 6 would put none in front, as --{task}-prompt none does"
    )


def _has_other_inputs(fed: Fed) -> bool:
    """Tell whether a network is fed more than ids and a mask over them."""
    known = {"input_ids", "attention_mask", "offsets"}
    for name, value in fed.features.items():
        if name in known or not hasattr(value, "shape"):
            continue
        if name != "token_type_ids" or bool(value.any()):
            return True
    return False
