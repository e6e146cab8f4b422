"""Very many different short texts of people's, and others to search among them by."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.bench import Bench
from benchmarks.corpora import definitions, glosses, maude, titles, wikipedia

# About so many words are a text, and a piece of fewer is left out.
WORDS = 8
FEWEST_WORDS = 3

# One document of so many is held out: none of its pieces is among the texts.
HELD_OUT = 500


@dataclass(frozen=True, kw_only=True)
class ShortTexts:
    """Texts in an order by chance, and what is searched for: texts held out, and titles."""

    texts: Sequence[str]
    held_out: Sequence[str]
    titles: Sequence[str]


def short_texts(bench: Bench, count: int) -> ShortTexts | None:
    """Return up to `count` texts that follow one another in reports, articles and dictionaries.

    What cannot be had here is left out, with a note; None without the articles.
    """
    searched = bench.corpus(titles)
    if searched is None:
        return None
    corpora = map(bench.corpus, (maude, wikipedia, glosses, definitions))
    documents = _shuffled(each for corpus in corpora if corpus for each in corpus.documents)
    held_out = [text for document in documents[::HELD_OUT] for text in pieces(document)[:1]]
    del documents[::HELD_OUT]
    kept = set(held_out)
    shuffled = _shuffled(text for document in documents for text in pieces(document))
    texts = [text for text in shuffled if text not in kept]
    return ShortTexts(texts=texts[:count], held_out=held_out, titles=_shuffled(searched.documents))


def _shuffled(texts: Iterable[str]) -> list[str]:
    """Return each text once, in the same order by chance at each run."""
    distinct = list(dict.fromkeys(texts))
    random.Random(0).shuffle(distinct)
    return distinct


def pieces(document: str) -> list[str]:
    """Cut a document into texts of as many words each, about `WORDS`."""
    words = document.split()
    count = max(1, round(len(words) / WORDS))
    edges = [number * len(words) // count for number in range(count + 1)]
    slices = (words[first:last] for first, last in pairwise(edges))
    return [" ".join(each) for each in slices if len(each) >= FEWEST_WORDS]
