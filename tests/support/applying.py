"""A file of one declared pipeline, what becomes of it in a database, and commands that apply it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipelines
from tests.support.commands import Ran, pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import FAKE_MODEL
from tests.support.pipelines import prepare_with_fake_model
from tests.support.prepared import filled_by

REPORTS = f"""
[pipelines.reports]
source_table = "reports"
target_table = "reports_chunks"
text_field = "body"
model = "{FAKE_MODEL.name}"
chunk_size = 16
overlap_tokens = 4
"""


def use_no_model(patch: pytest.MonkeyPatch) -> None:
    """Have pipelines made and altered with the fake model."""
    patch.setattr("pgqueue_embed.configuration.apply.prepare", prepare_with_fake_model)
    patch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    patch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _pipeline: None)


def make_reports(connection: Connection, _session: Session) -> None:
    """Make the source."""
    make_source(connection, [*texts(10), None])


make_source_alone = filled_by(make_reports)


def make_applied(conninfo: str) -> None:
    """Make the source, and the pipeline of the file."""
    make_source_alone(conninfo)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        use_no_model(patch)
        file = Path(folder, "pgembed.toml")
        file.write_text(REPORTS, encoding="utf-8")
        assert pgembed(conninfo, "apply", str(file), "--yes").exit_code == 0


# A file's PREPARED: with the fixture `reports` the pipeline is there.
DECLARED = {"reports": make_applied, "conninfo": make_source_alone}


def declare(file: Path, old: str, new: str) -> None:
    """Change the file."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def apply(conninfo: str, file: Path) -> Ran:
    """Apply the file, twice: the second time there is nothing to do."""
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    if ran.error is None:
        assert ran.exit_code == 0
        assert "nothing to do" in pgembed(conninfo, "apply", str(file), "--yes").stdout
        assert pgembed(conninfo, "apply", str(file), "--dry-run").exit_code == 0
    return ran


def state(connection: Connection) -> list[object]:
    """Return the pipelines and the tables that there are."""
    relations = connection.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1"
    )
    return [load_pipelines(connection), relations.fetchall()]
