"""Search: the nearest chunks, with and without an index, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.lifecycle import create as creating
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.commands import pgembed
from tests.support.corpus import make_source
from tests.support.models import make_tiny_model, share_loaded_models
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, open_session

ROWS = 400


def direction(degrees: float) -> NDArray[np.float32]:
    """Return a unit vector of 8 dimensions, so far from the first axis."""
    vector = np.zeros(8, np.float32)
    vector[0], vector[1] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return vector


def fill(connection: Connection, pipeline: Pipeline, rows: int = ROWS) -> None:
    """Write `rows` chunks, the n-th of which is 180 n / rows degrees from the first axis."""
    query = sql.SQL(
        "insert into {} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char,"
        " tokens, embedding)"
        " select n, n, 0, 'text of ' || n, 10, 20, 2,"
        " array[cosd(180.0 * n / %(rows)s), sind(180.0 * n / %(rows)s), 0, 0, 0, 0, 0, 0]"
        " from generate_series(1, %(rows)s) as n"
    ).format(sql.Identifier(pipeline.target.schema, pipeline.target.name))
    connection.execute(query, {"rows": rows})


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline with vectors in known directions."""
    pipeline = make_pipeline(connection, make_source(connection))
    fill(connection, pipeline)
    return pipeline


def keys(connection: Connection, pipeline: Pipeline, degrees: float, limit: int) -> list[int]:
    found = search(
        connection, pipeline, direction(degrees), SearchRequest(limit=limit, threshold=-1)
    )
    return [int(hit.key_text) for hit in found]


def exact(degrees: float, limit: int) -> list[int]:
    distance = {n: abs(180 * n / ROWS - degrees) for n in range(1, ROWS + 1)}
    return sorted(distance, key=distance.__getitem__)[:limit]


@pytest.mark.on_both_servers
def test_the_nearest_chunks_come_first_with_cosine_similarity(
    connection: Connection, reports: Pipeline
) -> None:
    found = search(connection, reports, direction(0), SearchRequest(limit=3, threshold=0))
    assert [hit.key for hit in found] == [1, 2, 3]
    assert found[1].score == pytest.approx(np.cos(np.radians(0.9)), abs=1e-6)
    assert (found[1].chunk, found[1].chunk_index) == ("text of 2", 0)
    assert (found[1].start_char, found[1].end_char) == (10, 20)


def test_only_chunks_above_the_threshold_are_returned(
    connection: Connection, reports: Pipeline
) -> None:
    found = search(connection, reports, direction(0), SearchRequest(limit=1000, threshold=0.5))
    assert len(found) == ROWS * 60 // 180
    assert min(hit.score for hit in found) >= 0.5
    assert (
        len(search(connection, reports, direction(0), SearchRequest(limit=1000, threshold=-1)))
        == ROWS
    )


@pytest.mark.on_both_servers(every_case=True)
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_an_index_is_used_and_finds_as_many_as_asked_for(
    connection: Connection, reports: Pipeline, method: str
) -> None:
    options = IndexOptions(method=method, lists=20 if method == "ivfflat" else None)
    name = build_index(connection, reports, plan(connection, reports, options))
    connection.execute("set enable_seqscan = off")
    found = keys(connection, reports, 90.1, 150)
    assert len(found) == 150
    assert len(set(found) & set(exact(90.1, 150))) >= 140
    assert times_scanned(connection, name) > 0


def times_scanned(connection: Connection, index: str) -> int:
    connection.execute("select pg_stat_force_next_flush()")
    (scans,) = connection.execute(
        "select idx_scan from pg_stat_user_indexes where indexrelname = %s", (index,)
    ).fetchone() or (0,)
    return int(scans)


def test_settings_of_a_search_do_not_outlive_it(connection: Connection, reports: Pipeline) -> None:
    keys(connection, reports, 0, 200)
    left = one_value(connection, "select current_setting('hnsw.ef_search')")
    assert left in ("", "40")


def test_the_extension_and_the_table_may_have_any_name(empty_conninfo: str) -> None:
    with connect(empty_conninfo) as session:
        session.execute('create schema "my vectors"; create schema "My Data"')
        session.execute('create extension vector schema "my vectors"')
        migrate(empty_conninfo)
        source = make_source(session, schema="My Data", table='odd "table" {x}')
        pipeline = make_pipeline(session, source)
        session.execute('set search_path = "my vectors", public')
        fill(session, pipeline)
        session.execute("reset search_path")
        assert [
            hit.key
            for hit in search(session, pipeline, direction(0), SearchRequest(limit=1, threshold=0))
        ] == [1]


@pytest.mark.parametrize(
    ("limit", "threshold", "complaint"),
    [(0, 0.0, "--limit 0"), (5, 1.01, "--threshold 1.01"), (5, -2.0, "--threshold -2")],
)
def test_impossible_options_are_refused(
    connection: Connection, reports: Pipeline, limit: int, threshold: float, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        search(connection, reports, direction(0), SearchRequest(limit=limit, threshold=threshold))


def test_a_target_table_that_is_gone_is_said(connection: Connection, reports: Pipeline) -> None:
    connection.execute("drop table reports_chunks")
    with pytest.raises(SetupError, match="cannot search public"):
        search(connection, reports, direction(0), SearchRequest(limit=1, threshold=0))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny(connection: Connection, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline over two records with the tiny model, not worked on yet."""
    share_loaded_models(monkeypatch)
    source = make_source(connection, ["The pump  stopped\nat \x1b[31mnight.", "A valve was stuck."])
    spec = checked(
        PipelineSpec(
            name="reports",
            source=source,
            target=Table(schema="public", name="reports_chunks"),
            text_fields=("body",),
        )
    )
    pipeline = creating.create(connection, spec, str(tiny_model)).pipeline
    enqueue(connection, pipeline, Selection())
    return pipeline


def embed_with(model: Path, conninfo: str, pipeline: Pipeline) -> None:
    from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, resolve_model
    from pgqueue_embed.pipeline.model import make_chunker

    def load() -> EmbeddingModel:
        return EmbeddingModel.reference(resolve_model(str(model)))

    device = DeviceThread(load, cache_bytes=0)
    try:
        chunker = make_chunker(device.model, pipeline)
        with open_session(conninfo) as session:
            drain(session, pipeline, device, chunker=chunker)
    finally:
        device.close()


def test_words_find_the_record_that_has_them(
    conninfo: str, tiny: Pipeline, tiny_model: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    ran = pgembed(conninfo, "search", "reports", "pump stopped", "--limit", "1")
    assert "record 1, chunk 0, characters 0–" in ran.stdout
    assert "The pump stopped at \N{REPLACEMENT CHARACTER}[31mnight." in ran.stdout
    (hit,) = json.loads(
        pgembed(conninfo, "search", "reports", "pump stopped", "--limit", "1", "--json").stdout
    )
    assert list(hit) == ["key", "score", "chunk_index", "start_char", "end_char", "chunk"]
    assert hit["chunk"] == "The pump  stopped\nat \x1b[31mnight."


def test_numbers_of_columns_keep_all_their_digits(
    conninfo: str, connection: Connection, tiny: Pipeline, tiny_model: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    amount = "12345678901234567890.123"
    connection.execute(f"alter table reports add column amount numeric default {amount}")
    connection.execute(f"alter table reports add column extra jsonb default '[{amount}]'")
    search_it = ("search", "reports", "pump", "--limit", "1", "--columns", "amount,extra")
    ran = pgembed(conninfo, *search_it, "--json")
    assert f'"amount": {amount}' in ran.stdout
    assert f'"extra": [\n        {amount}' in ran.stdout
    shown = pgembed(conninfo, *search_it).stdout
    assert f"amount: {amount}\n" in shown
    assert f"extra: [{amount}]\n" in shown


def test_values_that_python_has_not_are_shown_as_postgresql_writes_them(
    conninfo: str, connection: Connection, tiny: Pipeline, tiny_model: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    many = "1" + "0" * 5_000
    connection.execute(
        f"""
        alter table reports
            add column until date default 'infinity',
            add column at_all timestamptz[] default '{{-infinity,2026-01-01 UTC}}',
            add column made timestamp default '0044-03-15 12:00 BC',
            add column closes time default '24:00',
            add column takes interval default '100000000 years',
            add column lasts interval default '-infinity',
            add column many jsonb default '[1, {many}, 0.5]'
        """
    )
    search_it = ("search", "reports", "pump", "--limit", "1", "--json")
    columns = "until,at_all,made,closes,takes,lasts,many"
    ran = pgembed(conninfo, *search_it, "--columns", columns)
    shown = json.loads(ran.stdout.replace(many, '"many"'))[0]["columns"]
    assert shown == {
        "until": "infinity",
        "at_all": ["-infinity", "2026-01-01T00:00:00+00:00"],
        "made": "0044-03-15 12:00:00 BC",
        "closes": "24:00:00",
        "takes": "100000000 years",
        "lasts": "-infinity",
        "many": [1, "many", 0.5],
    }


def test_when_nothing_reaches_the_threshold_the_best_score_is_said(
    conninfo: str, tiny: Pipeline, tiny_model: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    ran = pgembed(conninfo, "search", "reports", "valve", "--threshold", "1")
    assert ran.stdout == ""
    assert "the nearest chunk has 0." in ran.stderr
    behind = pgembed(conninfo, "search", "reports", "valve", "--threshold", "-1", "--offset", "99")
    assert behind.stderr == "--offset 99 leaves out all that there is\n"
    nowhere = pgembed(conninfo, "search", "reports", "valve", "--where", "false", "--json")
    assert (nowhere.stdout, nowhere.stderr) == ("[]\n", "no chunk fulfils the --where\n")


def test_what_the_threshold_leaves_out_is_said(
    conninfo: str, tiny: Pipeline, tiny_model: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    search_it = ("search", "reports", "valve", "--json", "--threshold")
    all_of_them = pgembed(conninfo, *search_it, "-1")
    best, other = [hit["score"] for hit in json.loads(all_of_them.stdout)]
    assert all_of_them.stderr == ""
    assert pgembed(conninfo, *search_it[:-1]) == all_of_them
    between = str((best + other) / 2)
    fewer = pgembed(conninfo, *search_it, between)
    assert len(json.loads(fewer.stdout)) == 1
    assert "1 of at most 5: all others score less than --threshold" in fewer.stderr
    assert pgembed(conninfo, *search_it, between, "--limit", "1").stderr == ""


def test_words_that_the_model_does_not_know_are_warned_about(
    conninfo: str, tiny: Pipeline, tiny_model: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    ran = pgembed(conninfo, "search", "reports", "护士换了备用设备")
    assert "of the query's tokens" in ran.stderr


def test_a_pipeline_without_vectors_is_told_kindly(conninfo: str, tiny: Pipeline) -> None:
    ran = pgembed(conninfo, "search", "reports", "pump")
    assert ran.exit_code == 0
    assert "reports has no vectors yet; embed some: pgembed work" in ran.stdout
    assert "pgembed enqueue reports" in ran.stdout
    assert json.loads(pgembed(conninfo, "search", "reports", "pump", "--json").stdout) == []


def test_an_empty_query_is_refused(conninfo: str, tiny: Pipeline, tiny_model: Path) -> None:
    embed_with(tiny_model, conninfo, tiny)
    assert "the query is empty" in (pgembed(conninfo, "search", "reports", " ").error or "")


def test_another_model_than_the_pipelines_is_refused_and_the_file_named(
    conninfo: str, tiny: Pipeline, tiny_model: Path, tmp_path: Path
) -> None:
    embed_with(tiny_model, conninfo, tiny)
    other = make_tiny_model(tmp_path / "other")
    config = other / "config_sentence_transformers.json"
    config.write_text(config.read_text().replace("{", '{"changed": true,', 1))
    ran = pgembed(conninfo, "search", "reports", "pump", "--model-path", str(other))
    assert "config_sentence_transformers.json" in (ran.error or "")
    assert ran.exit_code == 1
