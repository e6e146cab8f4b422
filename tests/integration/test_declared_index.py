"""An index that is declared: a worker builds it once the queue has drained, after a crash too."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, alter
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.scan_cursor import open_scan
from pgqueue_embed.vector_search.index import vector_indexes
from pgqueue_embed.vector_search.index_build import read_build_progress
from pgqueue_embed.vector_search.lexical_index import has_lexical_index
from tests.support.building import build_waits, someone_writes
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.light import light_process, light_workers
from tests.support.pipelines import make_pipeline


def declare(
    connection: Connection,
    quantize: str = "halfvec",
    records: int = 12,
    partition_by: str | None = None,
) -> Pipeline:
    """Make a pipeline with an index to be, and queue its records."""
    source = make_source(connection, texts(records, chunks=2))
    pipeline = make_pipeline(
        connection,
        source,
        index_method="hnsw",
        quantize=quantize,
        partition_by=partition_by,
        lexical=True,
    )
    enqueue(connection, pipeline, Selection())
    return pipeline


def built(connection: Connection, pipeline: Pipeline) -> list[tuple[str, str, bool]]:
    found = vector_indexes(connection, pipeline)
    return [(each.method, each.quantize, each.valid) for each in found]


@pytest.mark.on_both_servers
@pytest.mark.parametrize(
    ("quantize", "partition_by"), [("none", None), ("halfvec", None), ("binary", "hash:3")]
)
def test_a_worker_that_drains_the_queue_builds_it(
    conninfo: str,
    connection: Connection,
    tmp_path: Path,
    quantize: str,
    partition_by: str | None,
) -> None:
    pipeline = declare(connection, quantize, partition_by=partition_by)
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0
    assert built(connection, pipeline) == [("hnsw", quantize, True)]
    assert has_lexical_index(connection, pipeline)
    assert worker.log().count("index built") == 2
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0
    assert "index begun" not in worker.log()


def test_a_build_whose_worker_was_killed_is_begun_anew_by_the_next(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    pipeline = declare(connection)
    with someone_writes(conninfo, pipeline), light_process(conninfo, tmp_path) as worker:
        wait_until(lambda: build_waits(connection, pipeline), "the build waits for the writer")
        worker.process.kill()
        wait_until(
            lambda: read_build_progress(connection, pipeline) is None, "the server gives it up"
        )
        assert [valid for *_, valid in built(connection, pipeline)] == [False]
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0
    assert built(connection, pipeline) == [("hnsw", "halfvec", True)]


def test_a_worker_that_stays_builds_it_and_drops_what_it_cannot_finish(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    pipeline = declare(connection)
    with light_workers(conninfo, tmp_path, drain=False) as [worker]:
        with someone_writes(conninfo, pipeline):
            wait_until(lambda: build_waits(connection, pipeline), "the build waits for the writer")
            worker.supervisor.stop()
            wait_until(lambda: read_build_progress(connection, pipeline) is None, "it is cut short")
        worker.wait()
    assert built(connection, pipeline) == []


def test_nothing_is_built_before_all_is_there(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    source = make_source(connection, texts(4))
    pipeline = make_pipeline(connection, source, index_method="hnsw")
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0
    assert built(connection, pipeline) == []
    enqueue(connection, pipeline, Selection())
    open_scan(connection, pipeline, "of somebody who enqueues")
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0
    assert built(connection, pipeline) == []


def test_what_this_role_cannot_build_is_said_and_the_work_is_done(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    pipeline = declare(connection)
    connection.execute("create table public.reports_chunks_embedding_halfvec_hnsw ()")
    with light_process(conninfo, tmp_path) as worker:
        assert worker.wait() == 0
    assert "index not built" in worker.log()
    assert "exists already" in worker.log()
    assert built(connection, pipeline) == []


def test_the_command_builds_what_is_declared(conninfo: str, connection: Connection) -> None:
    pipeline = declare(connection, "binary")
    assert pgembed(conninfo, "index", "reports").exit_code == 0
    assert built(connection, pipeline) == [("hnsw", "binary", True)]


def test_it_is_declared_and_taken_back_at_once(connection: Connection) -> None:
    source = make_source(connection, texts(2))
    pipeline = make_pipeline(connection, source)
    with pytest.raises(UsageError, match="reports declares none: add --index hnsw"):
        alter(connection, pipeline, Changes(quantize="binary"))
    alter(connection, pipeline, Changes(index_method="ivfflat", quantize="binary"))
    pipeline = load_pipeline(connection, "reports")
    alter(connection, pipeline, Changes(quantize="halfvec"))
    alter(connection, pipeline, Changes(quantize="binary"))
    spec = load_pipeline(connection, "reports").spec
    assert (spec.index_method, spec.quantize) == ("ivfflat", "binary")
    with pytest.raises(UsageError, match="add --index hnsw"):
        alter(connection, pipeline, Changes(index_method="", quantize="binary"))
    alter(connection, pipeline, Changes(index_method=""))
    spec = load_pipeline(connection, "reports").spec
    assert (spec.index_method, spec.quantize) == (None, "none")


def test_an_index_that_cannot_be_is_refused_with_the_pipeline(connection: Connection) -> None:
    source = make_source(connection, texts(2))
    with pytest.raises(UsageError, match="--quantize halfvec"):
        make_pipeline(
            connection, source, dimensions=3_000, vector_type="vector", index_method="hnsw"
        )
    with pytest.raises(UsageError, match="add --index hnsw"):
        make_pipeline(connection, source, quantize="binary")
    made = make_pipeline(
        connection, source, dimensions=5_000, index_method="hnsw", quantize="binary"
    )
    assert made.spec.quantize == "binary"
