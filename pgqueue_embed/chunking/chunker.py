"""From documents to chunks: tokenise once, plan the cuts, slice, repair what a cut changed."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking import boundaries
from pgqueue_embed.chunking.chunk import Chunk, ChunkedDocument
from pgqueue_embed.chunking.context import Context, cut_in_context
from pgqueue_embed.chunking.encoding import Cuts, Tokens, private_copy, tokenise, unknown_id
from pgqueue_embed.chunking.readers import reader_of
from pgqueue_embed.errors import RecordFault, UsageError

# Cut into small windows when a chunker is made, to learn whether the ids of a slice are those
# that its text has on its own.
_CANARIES = (
    "The pump's alarm (model X-200) was silenced, then re-started.  It failed again!\n\n"
    'Next day: "no flow" at 3.14 ml/h;\tthe nurse e-mailed bio-med@example.org immediately.\r\n',
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。患者没有受到伤害！制造商已收到通知。",
    "Устройство перестало работать. Ça n'était pas prévu… 장치가 작동을 멈췄습니다. できません。",
    "Temperature\u00a037 °C 🙂🙂 naïve co\u00f6perate\u200b hyphen\u00adation ﬁne ① x²=4 [SEP] end",
)
_CANARY_TOKENS = 12
_SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]
# A slice may have a token more than its part of the document, where ids are not reusable.
_SLACK_TOKENS = 2
# More are cut, whatever they count: a word of a thousand emoji may be one unknown token.
MOST_CHARACTERS = 1 << 16


@dataclass(slots=True)
class _Draft:
    """A slice of at most `max_tokens`, and its ids, None until it is tokenised on its own."""

    document: int
    start: int
    end: int
    max_tokens: int
    ids: NDArray[np.int32] | None


class Chunker:
    """Cuts documents into chunks of at most ``max_tokens`` content tokens.

    Special tokens and prompt are not part of the budget: subtract them first. Neighbouring
    chunks share up to ``overlap_tokens``, from a word start. With ``whole`` a document is one
    chunk, and one of more tokens is refused. The tokenizer is copied; its truncation and padding
    have no effect here, and its control tokens only with ``control_tokens``. Safe to call from many
    threads.
    ``reuses_ids`` tells whether one pass over a document is enough, as for WordPiece; if not,
    its slices are tokenised again.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        overlap_tokens: int,
        whole: bool = False,
        control_tokens: bool = False,
    ) -> None:
        """Raise UsageError unless ``0 <= overlap_tokens < max_tokens / 2``."""
        _check(max_tokens, overlap_tokens)
        self.max_tokens = max_tokens
        self.overlap_tokens = overlap_tokens
        self.whole = whole
        self._tokenizer = private_copy(tokenizer, control_tokens=control_tokens)
        self._reader = reader_of(self._tokenizer)
        self._unknown_id = unknown_id(self._tokenizer)
        self._drops_spaces = _drops_spaces(self._tokenizer)
        self.reuses_ids = self._slices_keep_their_ids()

    def chunk(
        self,
        documents: Sequence[str],
        contexts: Sequence[Context] | None = None,
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> list[ChunkedDocument]:
        """Cut each document; one without readable text has no chunks.

        With ``contexts``, one for each document, a chunk and its context keep to the budget.
        ``on_progress`` is called every quarter of a megabyte; what it raises ends the call.
        Every character but white space at the edges of chunks is in some chunk. Raises
        RecordFault if one character alone has more tokens than the budget, for a document that
        is longer where it must stay whole, and for a context that leaves no room.
        """
        if contexts is None:
            return self._cut(documents, [self.max_tokens] * len(documents), on_progress)
        return cut_in_context(
            self._reader,
            documents,
            contexts,
            max_tokens=self.max_tokens,
            cut=lambda texts, budgets: self._cut(texts, budgets, on_progress),
            on_progress=on_progress,
        )

    def _cut(
        self,
        documents: Sequence[str],
        budgets: Sequence[int],
        on_progress: Callable[[], None],
    ) -> list[ChunkedDocument]:
        drafts: list[_Draft] = []
        ids: list[NDArray[np.int32]] = []
        limits = [budget - self._slack(budget) for budget in budgets]
        read = tokenise(self._reader, documents, limits=limits, on_progress=on_progress)
        for number, tokens in enumerate(read):
            drafts += self._draft(number, documents[number], tokens, budgets[number])
            ids.append(tokens.ids)
        chunks = _finish(documents, self._repair(documents, drafts, on_progress))
        return [
            ChunkedDocument(chunks=parts, inputs=parts, tokens=len(own), unknown_tokens=unknown)
            for parts, own, unknown in zip(
                map(tuple, chunks), ids, self._unknown_tokens(ids), strict=True
            )
        ]

    def _unknown_tokens(self, ids: Sequence[NDArray[np.int32]]) -> list[int]:
        """Count the unknown tokens of each document, of all in one pass."""
        if self._unknown_id is None or not ids:
            return [0] * len(ids)
        places = np.flatnonzero(np.concatenate(ids) == self._unknown_id)
        ends = np.cumsum([len(own) for own in ids])
        counts: list[int] = np.diff(np.searchsorted(places, ends), prepend=0).tolist()
        return counts

    def _slack(self, budget: int) -> int:
        return 0 if self.reuses_ids or self.whole else min(_SLACK_TOKENS, budget // 8)

    def _draft(self, number: int, document: str, tokens: Tokens, budget: int) -> list[_Draft]:
        if self.whole:
            _refuse_longer(len(tokens.ids), budget)
        if tokens.cuts is None:
            drafts = _uncut(number, document, tokens.ids, budget)
            if not self._drops_spaces and any(
                draft.end - draft.start < len(document) for draft in drafts
            ):
                drafts[0].ids = None
        else:
            overlap = min(self.overlap_tokens, (budget - 1) // 2)
            most = budget - self._slack(budget)
            ranges = boundaries.plan_chunks(
                tokens.cuts.classes, max_tokens=most, overlap_tokens=overlap
            )
            if not self.whole and len(document) > MOST_CHARACTERS:
                ranges = _shortened(tokens.cuts.starts, ranges)
            drafts = list(_slices(number, document, tokens.ids, tokens.cuts, ranges, budget))
        if not self.reuses_ids:
            for draft in drafts:
                draft.ids = None
        return drafts

    def _repair(
        self, documents: Sequence[str], drafts: list[_Draft], on_progress: Callable[[], None]
    ) -> list[_Draft]:
        """Give each draft the ids of its own text, and part it where they are too many."""
        while broken := [draft for draft in drafts if not self._is_ready(draft)]:
            texts = [documents[draft.document][draft.start : draft.end] for draft in broken]
            limits = [draft.max_tokens for draft in broken]
            tokens = tokenise(
                self._reader, texts, limits=limits, whole=True, on_progress=on_progress
            )
            parts = {
                id(draft): self._settle(draft, text, own)
                for draft, text, own in zip(broken, texts, tokens, strict=True)
            }
            drafts = [part for draft in drafts for part in parts.get(id(draft), [draft])]
        return drafts

    def _is_ready(self, draft: _Draft) -> bool:
        return draft.ids is not None and len(draft.ids) <= draft.max_tokens

    def _settle(self, draft: _Draft, text: str, tokens: Tokens) -> list[_Draft]:
        count, budget = len(tokens.ids), draft.max_tokens
        if tokens.cuts is None or count <= budget:
            draft.ids = tokens.ids
            return [draft]
        if self.whole:
            _refuse_longer(count, budget)
        even_share = -(-count // -(-count // budget))
        ranges = boundaries.plan_chunks(
            tokens.cuts.classes, max_tokens=even_share, overlap_tokens=0
        )
        parts = list(_slices(draft.document, text, tokens.ids, tokens.cuts, ranges, budget))
        if len(parts) < 2:
            raise RecordFault(
                f"the character {text[0]!a} has {count} tokens, more than the {budget} "
                "of a chunk; give the pipeline longer chunks"
            )
        for part in parts:
            part.start, part.end = part.start + draft.start, part.end + draft.start
            part.ids = None
        return parts

    def _slices_keep_their_ids(self) -> bool:
        drafts: list[_Draft] = []
        limits = [_CANARY_TOKENS] * len(_CANARIES)
        read = tokenise(self._reader, _CANARIES, limits=limits)
        for number, (text, tokens) in enumerate(zip(_CANARIES, read, strict=True)):
            if tokens.cuts is not None:
                classes = tokens.cuts.classes
                ranges = boundaries.plan_chunks(
                    classes, max_tokens=_CANARY_TOKENS, overlap_tokens=4
                )
                drafts += _slices(
                    number,
                    text,
                    tokens.ids,
                    tokens.cuts,
                    ranges,
                    _CANARY_TOKENS,
                    any_edges=True,
                )
        reusable = [draft for draft in drafts if draft.ids is not None]
        texts = [_CANARIES[draft.document][draft.start : draft.end] for draft in reusable]
        own = tokenise(self._reader, texts, whole=True)
        return bool(reusable) and all(
            draft.ids is not None and np.array_equal(draft.ids, tokens.ids)
            for draft, tokens in zip(reusable, own, strict=True)
        )


def _check(max_tokens: int, overlap_tokens: int) -> None:
    if max_tokens < 1:
        raise UsageError(f"a chunk needs at least 1 token, not {max_tokens}")
    if not 0 <= 2 * overlap_tokens < max_tokens:
        raise UsageError(
            f"an overlap of {overlap_tokens} tokens does not fit chunks of {max_tokens}; "
            "give 0 or more, and less than half a chunk"
        )


def _refuse_longer(tokens: int, budget: int) -> None:
    if tokens > budget:
        raise RecordFault(
            f"the document has {tokens} tokens, more than the {budget} that the model reads at"
            " once, and with --chunking none nothing is cut: shorten it, or use --chunking tokens"
        )


def _uncut(number: int, document: str, ids: NDArray[np.int32], budget: int) -> list[_Draft]:
    """Return the one slice of a document that fits; none if there is nothing to read in it."""
    start, stop = _strip(document, 0, len(document))
    if start == stop or not len(ids):
        return []
    return [_Draft(document=number, start=start, end=stop, ids=ids, max_tokens=budget)]


def _shortened(
    starts: NDArray[np.int64], ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Part token ranges, in order, wherever a token lies MOST_CHARACTERS behind the first one."""
    parted_at = 0
    for planned_first, end in ranges:
        first = max(planned_first, parted_at)
        while starts[end - 1] - starts[first] > MOST_CHARACTERS:
            stop = int(np.searchsorted(starts, starts[first] + MOST_CHARACTERS, side="right"))
            yield first, stop
            first = parted_at = stop
        yield first, end


def _slices(
    number: int,
    document: str,
    ids: NDArray[np.int32],
    cuts: Cuts,
    ranges: Iterable[tuple[int, int]],
    budget: int,
    *,
    any_edges: bool = False,
) -> Iterator[_Draft]:
    """Turn token ranges into slices without white space at their edges.

    What the tokenizer dropped between two slices belongs to the first one. The ids are those of
    the range only where both its ends are word ends, it holds no seam, and neither white space
    beside the slice nor a character at its edge that may be read as such has a part in them; with
    ``any_edges`` these last are not looked at.
    """
    count = len(ids)
    for first, end in ranges:
        start = int(cuts.starts[first]) if first else 0
        stop = int(cuts.starts[end]) if end < count else len(document)
        start, stop = _strip(document, start, stop)
        whole_words = cuts.fresh[first] and (end == count or cuts.fresh[end])
        seam = bisect_left(cuts.seams, first)
        clean = whole_words and (seam == len(cuts.seams) or cuts.seams[seam] > end)
        if not any_edges:
            clean = clean and start < stop and _is_own(document, cuts, (first, end), (start, stop))
        own = ids[first:end] if clean else None
        if start < stop:
            yield _Draft(document=number, start=start, end=stop, ids=own, max_tokens=budget)


def _is_own(
    document: str, cuts: Cuts, tokens: tuple[int, int], characters: tuple[int, int]
) -> bool:
    """Tell whether a range of tokens has the ids of the slice of characters on its own."""
    (first, end), (start, stop) = tokens, characters
    spaces_before = start - int(cuts.starts[first])
    if spaces_before > 1 or (first + 1 < end and int(cuts.starts[first + 1]) <= start):
        return False
    if int(cuts.starts[end - 1]) >= stop:
        return False
    begins = start == 0 or _is_plain(document[start])
    return begins and (stop == len(document) or _is_plain(document[stop - 1]))


@lru_cache(maxsize=1 << 14)
def _is_plain(character: str) -> bool:
    """Tell whether no tokenizer reads a character at an edge as white space, or not at all.

    Zero-width spaces, marks and control characters are such, and what NFKC makes of some symbols.
    """
    if character.isascii():
        return character.isprintable()
    normal = unicodedata.normalize("NFKC", character)
    return all(unicodedata.category(each)[0] in "LNP" for each in (normal[:1], normal[-1:]))


def _drops_spaces(tokenizer: Tokenizer) -> bool:
    """Tell whether white space around a text leaves its ids as they are."""
    plain, spaced = ("pump", "".join(_SPACES) + "pump" + "".join(_SPACES))
    encodings = tokenizer.encode_batch([plain, spaced], add_special_tokens=False)
    return bool(encodings[0].ids == encodings[1].ids)


def _strip(document: str, start: int, end: int) -> tuple[int, int]:
    if start < end and not (document[start].isspace() or document[end - 1].isspace()):
        return start, end
    text = document[start:end]
    end -= len(text) - len(text.rstrip())
    return min(end, start + len(text) - len(text.lstrip())), end


def _finish(documents: Sequence[str], drafts: Iterable[_Draft]) -> list[list[Chunk]]:
    """Number the chunks of each document, leaving out any that is part of a neighbour."""
    chunks: list[list[Chunk]] = [[] for _ in documents]
    for draft in drafts:
        done = chunks[draft.document]
        if draft.ids is not None and len(draft.ids) and (not done or draft.end > done[-1].end):
            if done and draft.start == done[-1].start:
                done.pop()
            text = documents[draft.document][draft.start : draft.end]
            chunk = Chunk(
                index=len(done),
                start=draft.start,
                end=draft.end,
                text=text,
                token_ids=draft.ids,
            )
            done.append(chunk)
    return chunks
