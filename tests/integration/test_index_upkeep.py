"""An index that has lost recall: measured after mass changes alone, and built anew."""

from __future__ import annotations

import threading

import pytest
from psycopg import sql

from pgqueue_embed import Database, Worker
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import index_upkeep
from pgqueue_embed.vector_search.build_watch import PhasePace
from pgqueue_embed.vector_search.index import vector_indexes
from pgqueue_embed.vector_search.index_build import BuildInProgress, BuildProgress, turn
from pgqueue_embed.vector_search.index_upkeep import check_index, index_to_check
from pgqueue_embed.worker import heartbeat, models, worker
from tests.support.building import build_waits, someone_writes
from tests.support.conditions import wait_until
from tests.support.corpus import make_source
from tests.support.light_worker import LightChoice
from tests.support.pipelines import make_pipeline

VECTORS = 3_000

FILL = """
insert into {target} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens,
    embedding)
select n, n || '-0', 0, 'text ' || n, 0, 5, 1,
    array(select random() - 0.5 from generate_series(1, 8 + 0 * n))
from generate_series(1, {rows}) as n
"""

# So few neighbours that much is not found: as after years of changes.
POOR = "with (m = 2, ef_construction = 4)"
GOOD = "with (m = 16, ef_construction = 64)"


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_upkeep, "LEAST_CHUNKS", 1_000)


def indexed(
    connection: Connection, built: str, quantize: str = "none", partition_by: str | None = None
) -> Pipeline:
    """Make a pipeline of 3,000 vectors, with the index that it declares."""
    pipeline = make_pipeline(
        connection,
        make_source(connection, []),
        index_method="hnsw",
        quantize=quantize,
        partition_by=partition_by,
    )
    fill = sql.SQL(FILL).format(target=pipeline.target.identifier, rows=sql.Literal(VECTORS))
    connection.execute(fill)
    of = "(embedding::public.halfvec(8)) public.halfvec_cosine_ops"
    of = of if quantize == "halfvec" else "embedding public.vector_cosine_ops"
    connection.execute(f"create index vectors_index on reports_chunks using hnsw ({of}) {built}")
    write(connection, VECTORS)
    index_upkeep.note_checked(connection, pipeline)
    return pipeline


def write(connection: Connection, chunks: int) -> None:
    """Let a worker have written so many chunks."""
    connection.execute(
        "insert into pgembed.batches (pipeline_id, chunks) select id, %s from pgembed.pipelines",
        (chunks,),
    )


def leaves(connection: Connection) -> set[int]:
    """Return the indexes of vectors that hold some, invalid ones too."""
    query = (
        "select pg_class.oid from pg_class join pg_am on pg_am.oid = relam"
        " where amname = 'hnsw' and relkind = 'i'"
    )
    return {oid for (oid,) in connection.execute(query)}


@pytest.mark.on_both_servers
@pytest.mark.parametrize(
    ("quantize", "partition_by"), [("none", None), ("halfvec", None), ("none", "hash:3")]
)
def test_after_mass_changes_it_is_measured_once_and_built_anew_if_it_finds_too_little(
    connection: Connection, quantize: str, partition_by: str | None
) -> None:
    pipeline = indexed(connection, POOR, quantize, partition_by)
    before = leaves(connection)
    write(connection, VECTORS // 2 - 1)
    assert index_to_check(connection, pipeline) is None
    write(connection, 1)
    index = index_to_check(connection, pipeline)
    assert index is not None
    fallen: list[float] = []
    recall = check_index(
        connection, pipeline, index, on_fallen=lambda found, _wanted: fallen.append(found)
    )
    assert recall is not None
    assert fallen == [recall]
    assert recall < 0.95
    after = leaves(connection)
    assert len(after) == len(before) == (3 if partition_by else 1)
    assert after.isdisjoint(before)
    assert [each.valid for each in vector_indexes(connection, pipeline)] == [True]
    assert index_to_check(connection, pipeline) is None


def test_one_that_finds_enough_stays(connection: Connection) -> None:
    pipeline = indexed(connection, GOOD)
    before = leaves(connection)
    write(connection, VECTORS)
    index = index_to_check(connection, pipeline)
    assert index is not None
    recall = check_index(connection, pipeline, index)
    assert recall is not None
    assert recall >= 0.95
    assert leaves(connection) == before
    assert index_to_check(connection, pipeline) is None


def test_what_was_measured_by_a_person_is_the_measure(connection: Connection) -> None:
    pipeline = indexed(connection, POOR)
    before = leaves(connection)
    connection.execute(
        "update pgembed.pipelines set ef_search = 40, ef_search_scan = 'none',"
        " ef_search_recall = 0.1, ef_search_k = 10, ef_search_parameters = parameters"
        " from pgembed.vector_indexes where vector_indexes.pipeline = name"
    )
    write(connection, VECTORS)
    index = index_to_check(connection, pipeline)
    assert index is not None
    assert check_index(connection, pipeline, index) is not None
    assert leaves(connection) == before


def test_a_rebuild_that_was_killed_is_begun_anew_and_leaves_nothing(
    conninfo: str, connection: Connection
) -> None:
    pipeline = indexed(connection, POOR)
    write(connection, VECTORS)
    index = index_to_check(connection, pipeline)
    assert index is not None
    before = leaves(connection)
    with connect(conninfo) as builder:

        def build() -> None:
            with pytest.raises(PgembedError):
                check_index(builder, pipeline, index)

        thread = threading.Thread(target=build)
        with someone_writes(conninfo, pipeline):
            thread.start()
            wait_until(
                lambda: build_waits(connection, pipeline), "the rebuild waits for the writer"
            )
            with pytest.raises(BuildInProgress), turn(connection, pipeline):
                pass
            connection.execute(
                "select pg_terminate_backend(%s, 10000)", (builder.info.backend_pid,)
            )
            thread.join()
        assert len(leaves(connection)) == 2
    assert index_to_check(connection, pipeline) is not None
    assert check_index(connection, pipeline, index) is not None
    assert len(leaves(connection)) == 1
    assert leaves(connection).isdisjoint(before)


def test_a_worker_does_so_once_it_has_drained_the_queue(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = indexed(connection, POOR)
    before = leaves(connection)
    monkeypatch.setattr(worker, "choose_model", lambda *_: LightChoice(pipeline.model_key))
    monkeypatch.setattr(models, "check_local_model", lambda *_: None)
    monkeypatch.setattr(heartbeat, "device_memory_bytes", lambda _device: 0)
    assert Worker(Database(conninfo), drain=True).run() == "drained"
    assert leaves(connection) == before
    write(connection, VECTORS)
    assert Worker(Database(conninfo), drain=True).run() == "drained"
    assert leaves(connection).isdisjoint(before)


def test_a_phase_ends_at_the_pace_at_which_it_goes() -> None:
    pace = PhasePace()

    def left(phase: str, done: int, now: float, total: int = 100) -> float | None:
        found = BuildProgress(phase=phase, done=done, total=total, waits_for_pid=None)
        return pace.seconds_left(found, now)

    assert left("loading", 10, 0.0) is None
    assert left("loading", 10, 5.0) is None
    assert left("loading", 20, 10.0) == 80.0
    assert left("loading", 60, 30.0) == 24.0
    assert left("waiting", 60, 31.0) is None
    assert left("waiting", 60, 40.0, total=0) is None
