"""Fair share between pipelines: one worker, equal times, and what each pipeline has by then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import heartbeat, worker
from tests.support.corpus import make_source
from tests.support.light import light_settings
from tests.support.light_worker import LightChoice, LightModel
from tests.support.pipelines import make_pipeline

CHUNK_SECONDS = 0.002


@pytest.fixture(autouse=True)
def _model_with_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a model into this process that takes so long for every chunk."""
    launch = LightModel.launch

    def paced(
        self: LightModel, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], object]:
        time.sleep(CHUNK_SECONDS * len(chunks))
        return launch(self, chunks, length=length)

    monkeypatch.setattr(LightModel, "launch", paced)
    monkeypatch.setattr(worker, "choose_model", lambda _connection, _settings: LightChoice())
    monkeypatch.setattr(heartbeat, "device_memory_bytes", lambda _device: 0)


def queue(connection: Connection, name: str, *, records: int, chunks: int, priority: int) -> None:
    # No sentence twice: the device computes one text of a claim once.
    documents = [
        " ".join(f"Event {number}, step {step}: the pump stopped." for step in range(chunks))
        for number in range(records)
    ]
    source = make_source(connection, documents, table=name)
    pipeline = make_pipeline(connection, source, name=name, priority=priority)
    enqueue(connection, pipeline, Selection())


def chunks_after(conninfo: str, connection: Connection, records: int) -> dict[str, int]:
    """Return how many chunks each pipeline has when the worker has done `records`."""
    settings = light_settings(
        drain=False, max_records=records, claim_seconds=0.05, lease_seconds=20, cache_megabytes=0
    )
    worker.Worker(conninfo, settings).run()
    rows = connection.execute(
        "select name, coalesce(sum(chunks), 0)::int from pgembed.pipelines"
        " left join pgembed.batches on pipeline_id = pipelines.id group by name"
    )
    return dict(rows.fetchall())


def test_pipeline_of_short_records_is_not_starved_by_one_of_long_records(
    conninfo: str, connection: Connection
) -> None:
    queue(connection, "long", records=1000, chunks=12, priority=10)
    queue(connection, "short", records=1000, chunks=1, priority=10)
    done = chunks_after(conninfo, connection, 400)
    # By number of records or claims it would be 12.
    assert 1 / 3 < done["long"] / done["short"] < 3, done


def test_time_is_shared_by_priority(conninfo: str, connection: Connection) -> None:
    queue(connection, "much", records=1000, chunks=1, priority=40)
    queue(connection, "little", records=1000, chunks=1, priority=10)
    done = chunks_after(conninfo, connection, 600)
    assert 2.5 < done["much"] / done["little"] < 6, done


def test_paused_pipeline_leaves_its_share_to_the_others(
    conninfo: str, connection: Connection
) -> None:
    queue(connection, "paused", records=100, chunks=1, priority=100)
    queue(connection, "active", records=100, chunks=1, priority=1)
    pause_pipeline(connection, load_pipeline(connection, "paused"), "for a test")
    assert chunks_after(conninfo, connection, 100)["paused"] == 0
