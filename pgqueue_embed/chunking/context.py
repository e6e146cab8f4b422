"""Text that the model reads around every chunk and that is not stored: a heading, say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pgqueue_embed.chunking.chunk import Chunk, ChunkedDocument
from pgqueue_embed.chunking.encoding import tokenise
from pgqueue_embed.chunking.reading import Reader
from pgqueue_embed.errors import RecordFault

# Below this share of the budget, a text would be read mostly for what is around it.
_SMALLEST_SHARE = 1 / 4

# Cuts documents, each by its own budget of tokens.
Cut = Callable[[Sequence[str], Sequence[int]], list[ChunkedDocument]]


@dataclass(frozen=True, slots=True)
class Context:
    """The texts in front of and behind every chunk of one document."""

    before: str
    after: str

    def around(self, text: str) -> str:
        """Return what the model reads for the chunk `text`."""
        return f"{self.before}{text}{self.after}"


def cut_in_context(
    reader: Reader,
    documents: Sequence[str],
    contexts: Sequence[Context],
    *,
    max_tokens: int,
    cut: Cut,
    on_progress: Callable[[], None] = lambda: None,
) -> list[ChunkedDocument]:
    """Cut `documents` so that each chunk with its context has at most `max_tokens` tokens.

    Raises RecordFault for a context that leaves too little room for the text.
    """
    bare = [context.around("") for context in contexts]
    rooms = [max_tokens - count for count in _token_counts(reader, bare)]
    done: dict[int, ChunkedDocument] = {}
    waiting = list(range(len(documents)))
    while waiting:
        for number in waiting:
            _check_room(documents[number], rooms[number], max_tokens)
        chunked = cut([documents[n] for n in waiting], [max(1, rooms[n]) for n in waiting])
        for number, each in zip(waiting, chunked, strict=True):
            done[number] = _framed(reader, each, contexts[number], on_progress)
            # Text and context may have more tokens together than each by itself.
            rooms[number] -= max(0, _longest(done[number]) - max_tokens)
        waiting = [number for number in waiting if _longest(done[number]) > max_tokens]
    return [done[number] for number in range(len(documents))]


def _token_counts(reader: Reader, texts: Sequence[str]) -> Iterable[int]:
    return (len(tokens.ids) for tokens in tokenise(reader, texts, whole=True))


def _check_room(document: str, room: int, max_tokens: int) -> None:
    if document.strip() and room < max_tokens * _SMALLEST_SHARE:
        raise RecordFault(
            f"the chunk template has {max_tokens - room} tokens beside the chunk here, too many"
            f" for chunks of {max_tokens}: it may have three quarters; shorten it, or give the"
            " pipeline longer chunks"
        )


def _framed(
    reader: Reader,
    chunked: ChunkedDocument,
    context: Context,
    on_progress: Callable[[], None],
) -> ChunkedDocument:
    texts = [context.around(chunk.text) for chunk in chunked.chunks]
    read = tokenise(reader, texts, whole=True, on_progress=on_progress)
    inputs: list[Chunk] = [
        replace(chunk, text=text, token_ids=tokens.ids)
        for chunk, text, tokens in zip(chunked.chunks, texts, read, strict=True)
    ]
    return replace(chunked, inputs=tuple(inputs))


def _longest(chunked: ChunkedDocument) -> int:
    return max((len(chunk.token_ids) for chunk in chunked.inputs), default=0)
