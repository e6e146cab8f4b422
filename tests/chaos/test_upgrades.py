"""Schema and model change while workers run: who does not fit any more says so and leaves."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed.db import migrate as migrations
from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import ModelMismatch, SetupError
from pgqueue_embed.lifecycle.create import create
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.stop_reasons import DRAINED
from pgqueue_embed.worker.worker import Worker
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.light import Supervised, light_workers
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

RECORDS = 400

# Each is what a later version might do, harmless or not to a worker of this one.
NEWER = {
    "adds a column": "alter table pgembed.work add column colour text;",
    "takes a column away": "alter table pgembed.batches drop column cache_hits;",
}


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of migrations of a later version, which this process is; workers are not."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrations.migrations_folder(), folder)
    monkeypatch.setattr(migrations, "migrations_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("change", NEWER.values(), ids=NEWER)
def test_worker_of_an_older_version_leaves_once_somebody_has_migrated(
    connection: Connection, conninfo: str, tmp_path: Path, next_version: Path, change: str
) -> None:
    make_source(connection, texts(10 * RECORDS))  # more than one of two workers does alone
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    logs = tmp_path / "logs"
    logs.mkdir()
    newest = sorted(next_version.glob("*.sql"))[-1].stem
    (next_version / "9999_of_a_later_version.sql").write_text(f"-- depends: {newest}\n{change}\n")
    slowly: dict[str, Any] = {"batch_seconds": 0.2, "claim_seconds": 0.5, "drain": False}
    with light_workers(conninfo, logs, 2, **slowly) as running:
        wait_until(lambda: all(has_committed(worker) for worker in running), "both work")
        assert migrate(conninfo) == ["9999_of_a_later_version"]
        for worker in running:
            worker.thread.join(30)
            assert isinstance(worker.error, SetupError), worker.log()[-3000:]
            assert "upgrade pgembed on this machine" in str(worker.error)
    assert connection.execute("select state from pgembed.pipelines").fetchone() == ("active",)
    connection.execute("alter table pgembed.batches add column if not exists cache_hits bigint")
    with open_session(conninfo, worker_id=0) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def has_committed(worker: Supervised) -> bool:
    return "batch committed" in worker.log()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def run_worker(conninfo: str, **fields: object) -> Worker:
    settings = {"concurrency": 1, "drain": True, "device": "cpu", "precision": "fp32"}
    return Worker(conninfo, WorkerSettings(**{**settings, **fields}))  # type: ignore[arg-type]


def test_equal_weights_at_different_paths_work_together_and_others_are_refused(
    connection: Connection, conninfo: str, tmp_path: Path, model: Path
) -> None:
    spec = checked(
        PipelineSpec(
            name="reports",
            source=make_source(connection, texts(RECORDS)),
            target=Table(schema="public", name="reports_chunks"),
            id_fields=("id",),
            text_fields=("body",),
        )
    )
    pipeline = create(connection, spec, str(model)).pipeline
    enqueue(connection, pipeline, Selection())
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    shutil.copytree(model, elsewhere)
    shutil.copytree(model, other)
    with next(other.rglob("*.safetensors")).open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x3f")
    with pytest.raises(ModelMismatch, match=r"safetensors differ"):
        run_worker(conninfo, model_path=str(other)).run()
    assert connection.execute("select count(*) from pgembed.batches").fetchone() == (0,)
    endings: list[str] = []
    paths = (str(model), str(elsewhere))
    workers = [run_worker(conninfo, model_path=path) for path in paths]
    threads = [
        threading.Thread(target=lambda worker=worker: endings.append(worker.run().reason))
        for worker in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert endings == [DRAINED] * 2
    assert_converged(connection, "reports")


def test_worker_leaves_when_its_pipeline_has_another_model_now(
    connection: Connection, conninfo: str, tmp_path: Path
) -> None:
    make_source(connection, texts(10 * RECORDS))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    slowly: dict[str, Any] = {"batch_seconds": 0.2, "claim_seconds": 0.5, "drain": False}
    with light_workers(conninfo, tmp_path, 1, **slowly) as [worker]:
        wait_until(lambda: has_committed(worker), "it works")
        connection.execute("update pgembed.pipelines set model_fingerprint = 'another'")
        wait_until(lambda: "pipeline left to others" in worker.log(), "its model is missed")
        committed = worker.log().count("batch committed")
        query = "select unserved is not null from pgembed.worker_status"
        wait_until(lambda: connection.execute(query).fetchall() == [(True,)], "it says so")
        assert worker.log().count("batch committed") == committed
    connection.execute(
        "update pgembed.pipelines set model_fingerprint = %s", (pipeline.model_fingerprint,)
    )
    with open_session(conninfo, worker_id=0) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
