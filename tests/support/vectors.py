"""Vectors of light workers, which depend on their text alone."""

from __future__ import annotations

import json

import numpy as np

from pgqueue_embed.db.session import Connection
from tests.support.fakes import unit_vector


def assert_vectors_are_of_their_texts(connection: Connection) -> None:
    """Fail if a vector is not the one that the light model gives its text."""
    rows = connection.execute(
        "select text_chunk, embedding::text from public.reports_chunks"
    ).fetchall()
    for text, vector in rows:
        difference = np.array(json.loads(vector)) - unit_vector(text)
        assert np.abs(difference).max() < 1e-5, text
