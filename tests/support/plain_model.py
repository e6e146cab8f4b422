"""A plain model and what tests make of it, compared with the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.embedding.rows import lowest_cosine, unit_rows
from tests.support.libraries import SentenceTransformer, load_file, save_file, torch
from tests.support.opened_models import chunks_of
from tests.support.zoo import Animal
from tests.support.zoo_tokenizers import BERT

SAME = 0.99999
PLAIN = Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT)


def change(file: Path, **values: Any) -> None:
    """Change settings of a file, which need not be there."""
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | values))


def change_weights(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Rename the weights of a folder; those called None are lost."""
    file = folder / "model.safetensors"
    renamed = {rename(name): tensor for name, tensor in load_file(file).items()}
    weights = {name: tensor for name, tensor in renamed.items() if name is not None}
    save_file(weights, file, metadata={"format": "pt"})


def assert_like_the_library(model: EmbeddingModel, folder: Path, *texts: str) -> None:
    """Check that a model gives documents and queries the vectors of the library, in fp32."""
    reference = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    chunks = chunks_of(model, *texts)
    wanted = [reference.encode_document(each.text, show_progress_bar=False) for each in chunks]
    assert lowest_cosine(model.forward(chunks), unit_rows(np.stack(wanted))) >= SAME
    for text in filter(model._queries.fits, texts):
        wanted = reference.encode_query(text, show_progress_bar=False)
        assert lowest_cosine(model.encode_query(text)[None], unit_rows(wanted[None])) >= SAME
