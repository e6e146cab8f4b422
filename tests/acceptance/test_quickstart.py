"""README's quickstart, typed as it stands, on real device-event reports."""

from __future__ import annotations

import csv
import gzip
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from pgqueue_embed.db.session import Connection
from tests.support.oracle import assert_converged

REPOSITORY = Path(__file__).parents[2]
REPORTS = Path(__file__).parents[1] / "data" / "maude_sample.csv.gz"


# Models are loaded and calibrated, one after the other, which a busy machine takes minutes for.
PATIENCE_SECONDS = 400
pytestmark = pytest.mark.timeout(PATIENCE_SECONDS + 60)


def load_reports(connection: Connection, limit: int) -> None:
    """Make the table that the quickstart embeds, with real reports of the FDA's MAUDE database."""
    connection.execute(
        "create table public.event_text (mdr_text_key bigint primary key, foi_text text not null)"
    )
    with gzip.open(REPORTS, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["mdr_text_key"], row["foi_text"]) for row in csv.DictReader(file)][:limit]
    with connection.cursor() as cursor, cursor.copy("copy public.event_text from stdin") as copy:
        for row in rows:
            copy.write_row(row)


def quickstart() -> str:
    """Return the block of README that claims to be executed."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    match = re.search(
        r"<!-- quickstart: executed by the tests -->\n```sh\n(.*?)```", text, re.DOTALL
    )
    assert match, "README.md has no quickstart block"
    return match[1]


def test_quickstart_of_the_readme_runs_as_it_stands(conninfo: str, connection: Connection) -> None:
    load_reports(connection, 20)
    block = quickstart()
    assert block.count("export PGEMBED_DSN=") == block.count(". .venv/bin/activate") == 1
    script = re.sub(r"export PGEMBED_DSN=\S+", f"export PGEMBED_DSN='{conninfo}'", block)
    script = script.replace(". .venv/bin/activate", "")
    binaries = sysconfig.get_path("scripts")
    finished = subprocess.run(
        ["sh", "-euc", script],
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_converged(connection, "reports")
    assert "queued 20 records of public.event_text" in finished.stdout
    assert "pgembed index reports" in finished.stdout
    assert "STENT" in finished.stdout.split("built ")[1]
    assert_libraries_print_nothing(finished)


def assert_libraries_print_nothing(finished: subprocess.CompletedProcess[str]) -> None:
    """Fail if torch, or what reads the model, says a word in any of the three that load them."""
    assert finished.stdout.startswith("made pipeline reports")
    assert re.search(r"\nbuilt \S+ in \d+ s\n0\.\d+  record ", finished.stdout)
    told = [line for line in finished.stderr.splitlines() if line.strip()]
    assert told
    progress = r"reports: \d+/20 records · |\d\d:\d\d \S+:\d+ (started|stopped): "
    assert all(re.match(progress, line) for line in told), finished.stderr
