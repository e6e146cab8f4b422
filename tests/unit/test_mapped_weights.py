"""Weights that are used where they lie in their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pgqueue_embed.embedding.mapped_weights import let_go, map_weights
from tests.support.resident import has_maps, resident_bytes

WIDTH = 1_024


@pytest.mark.skipif(not has_maps(), reason="this system does not tell what is resident of a file")
def test_pages_that_were_let_go_are_read_again_when_they_are_used(tmp_path: Path) -> None:
    written = np.arange(WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH)
    path = tmp_path / "model.safetensors"
    save_file({"table": written}, path)
    (table,) = map_weights(path)[0].values()
    total = table.sum()
    assert resident_bytes(path) >= written.nbytes
    let_go(table)
    assert resident_bytes(path) == 0
    assert table.sum() == total
    assert np.array_equal(table, written)


def test_an_array_of_no_file_stays_as_it_is() -> None:
    own = np.ones((WIDTH, WIDTH), np.float32)
    let_go(own)
    let_go(own[1:].reshape(-1))
    assert own.all()
