"""A file that declares a pipeline, and the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.applying import REPORTS, use_no_model


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_no_model(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file, of one pipeline; its source is there, by PREPARED."""
    path = tmp_path / "pgembed.toml"
    path.write_text(REPORTS, encoding="utf-8")
    return path


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """The pipeline of the file, made, by PREPARED."""
    return load_pipeline(connection, "reports")
