"""`estimate`, compared with what lies in the database once all is embedded."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.estimation import drawn_records, text_sample
from pgqueue_embed.estimation.estimate import Estimate, Storage, estimate
from pgqueue_embed.estimation.rate import ChunkRate
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.commands import pgembed
from tests.support.corpus import make_source, real_reports
from tests.support.fakes import fake_chunker
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_row, one_value
from tests.support.working import drain

CLOSE = 0.10
RATE = ChunkRate(chunks_per_second=10.0, of="as given")


def reports() -> list[str]:
    return real_reports()


def glosses() -> list[str]:
    """Short English texts: sentences of the reports, each once, as equal vectors are indexed."""
    sentences = (each for text in real_reports() for each in re.split(r"(?<=\.) +", text))
    return list(islice(dict.fromkeys(sentences), 3_000))


def poems() -> list[str]:
    """Chinese texts of four to forty lines, of the commonest characters."""
    chance = random.Random(7)
    lines = ["".join(chr(chance.randint(0x4E00, 0x6FFF)) for _ in range(7)) for _ in range(400)]
    return ["，\n".join(chance.choices(lines, k=chance.randint(4, 40))) for _ in range(600)]


CORPORA = {
    "reports": (reports, "vector", 384),
    "glosses": (glosses, "halfvec", 768),
    "poems": (poems, "vector", 1_024),
}
# Those that lie in parts.
PARTITIONED = {"glosses": "hash:4"}
# Those of neither texts nor ids: one more fits a page only just.
SMALL = {"reports"}


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a source of some hundred blocks be sampled as one of millions."""
    monkeypatch.setattr(drawn_records, "BLOCKS", 64)
    monkeypatch.setattr(drawn_records, "FEWEST_RECORDS", 400)
    monkeypatch.setattr(text_sample, "FEWEST_RECORDS", 400)


def estimated(connection: Connection, pipeline: Pipeline) -> Estimate:
    spec = pipeline.spec
    chunker = fake_chunker(spec.chunk_tokens, spec.overlap_tokens)
    return estimate(connection, pipeline, chunker, lambda _: RATE)


@pytest.mark.parametrize("corpus", CORPORA)
def test_all_is_told_to_a_tenth_of_what_comes_to_lie_there(
    connection: Connection, session: Session, corpus: str
) -> None:
    make, vector_type, dimensions = CORPORA[corpus]
    pipeline = embeddable(
        connection,
        make(),
        vector_type=vector_type,
        dimensions=dimensions,
        partition_by=PARTITIONED.get(corpus),
        text=corpus not in SMALL,
        ids=corpus not in SMALL,
    )
    found = estimated(connection, pipeline)
    begun = one_value(connection, "select pg_current_wal_insert_lsn()")
    embed_all(connection, session, pipeline)
    logged = one_value(connection, "select pg_current_wal_insert_lsn() - %s::pg_lsn", (begun,))
    build_index(connection, pipeline, plan(connection, pipeline, IndexOptions()))
    check_sizes(connection, found, vector_type)
    check_logged(found, vector_type, logged)
    if corpus in SMALL:
        check_index_of_bits(connection, found)
    chunks, tokens = one_row(connection, "select count(*), sum(tokens) from reports_chunks")
    assert found.records == one_value(connection, "select count(*) from reports")
    assert found.chunks == pytest.approx(chunks, rel=CLOSE)
    assert found.tokens == pytest.approx(tokens, rel=CLOSE)


@pytest.mark.usefixtures("small_sample")
def test_a_sample_tells_of_all(connection: Connection) -> None:
    pipeline = embeddable(connection, reports() * 4)
    whole = fake_chunker(128, 20).chunk(reports())
    chunks = 4 * sum(len(each.chunks) for each in whole)
    found = estimated(connection, pipeline)
    assert found.sampled < found.records
    assert 0 < found.margin < 0.5
    # Twice the 95 % interval: once in ten thousand runs it is left by chance.
    assert found.chunks == pytest.approx(chunks, rel=2 * found.margin)
    assert found.hours == pytest.approx(found.chunks / 36_000)


@pytest.mark.parametrize(("records", "sampled"), [(600, 600), (3_000, 1_000)])
def test_few_records_are_all_looked_at_and_of_many_alike_no_more_than_needed(
    connection: Connection, records: int, sampled: int
) -> None:
    found = estimated(connection, embeddable(connection, ["The pump stopped."] * records))
    assert (found.records, found.sampled, found.chunks) == (records, sampled, records)


def embeddable(
    connection: Connection,
    documents: Sequence[str],
    *,
    vector_type: str = "vector",
    dimensions: int = 8,
    partition_by: str | None = None,
    text: bool = True,
    ids: bool = True,
) -> Pipeline:
    source = make_source(connection, documents)
    return make_pipeline(
        connection,
        source,
        vector_type=vector_type,
        dimensions=dimensions,
        chunk_tokens=128,
        overlap_tokens=20,
        partition_by=partition_by,
        text=text,
        ids=ids,
    )


def embed_all(connection: Connection, session: Session, pipeline: Pipeline) -> None:
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline, chunker=fake_chunker(128, 20))


SIZES = """
with part as (
    select relid from pg_partition_tree('reports_chunks') where isleaf
    union
    select 'reports_chunks'::regclass
),
stored as (
    select sum(
        pg_table_size(relid) - pg_relation_size(relid, 'fsm') - pg_relation_size(relid, 'vm')
    ) as table_bytes, sum(pg_indexes_size(relid)) as index_bytes
    from part
)
select
    table_bytes::bigint,
    (index_bytes - size_bytes)::bigint,
    size_bytes,
    pg_total_relation_size('pgembed.records')
from stored
cross join pgembed.vector_indexes
"""


def told_of(found: Estimate, vector_type: str) -> Storage:
    (told,) = (
        each for each in found.storage if (each.vectors, each.index) == (vector_type, "none")
    )
    return told


def check_logged(found: Estimate, vector_type: str, logged: float) -> None:
    """Compare what is logged but for the index, which a server without standbys does not log."""
    told = told_of(found, vector_type)
    assert told.wal is not None
    assert told.vector_index is not None
    assert told.wal - told.vector_index == pytest.approx(float(logged), rel=CLOSE)


def check_sizes(connection: Connection, found: Estimate, vector_type: str) -> None:
    told = told_of(found, vector_type)
    table, key_indexes, vector_index, ledger = one_row(connection, SIZES)
    assert told.table == pytest.approx(table, rel=CLOSE)
    assert told.vector_index == pytest.approx(vector_index, rel=CLOSE)
    assert told.in_all == pytest.approx(table + key_indexes + vector_index + ledger, rel=CLOSE)
    # Small beside the others, and of how many loops wrote them.
    assert told.key_indexes == pytest.approx(key_indexes, rel=0.5)
    assert told.ledger == pytest.approx(ledger, rel=0.5)


INDEX_OF_BITS = """
create index bits on reports_chunks
    using hnsw ((binary_quantize(embedding)::bit(384)) bit_hamming_ops)
"""


def check_index_of_bits(connection: Connection, found: Estimate) -> None:
    connection.execute(INDEX_OF_BITS)
    (told,) = (each for each in found.storage if each.index == "binary")
    size = one_value(connection, "select pg_relation_size('bits')")
    assert told.vector_index == pytest.approx(size, rel=CLOSE)


@pytest.mark.usefixtures("small_sample")
class TestSamplesOfEverySource:
    """The number of records is told from blocks, or counted where there are none."""

    def filled(self, connection: Connection, rows: int = 20_000) -> Pipeline:
        source = make_source(connection)
        connection.execute(
            "insert into reports select n, repeat('word ', 20) from generate_series(1, %s) as n",
            (rows,),
        )
        return make_pipeline(connection, source)

    def test_rare_condition(self, connection: Connection) -> None:
        self.filled(connection)
        rare = make_pipeline(
            connection,
            name="rare",
            where="id % 1000 = 0",
            target=Table(schema="public", name="rare_chunks"),
        )
        assert estimated(connection, rare).records == 20

    def test_no_row_in_the_blocks_drawn_is_no_proof(self, connection: Connection) -> None:
        pipeline = self.filled(connection)
        connection.execute("delete from reports where id < 20000")
        assert estimated(connection, pipeline).records == 1

    def test_view(self, connection: Connection) -> None:
        self.filled(connection)
        connection.execute("create view shown as select * from reports where id <= 5000")
        source = make_source(connection, table="other")
        shown = make_pipeline(connection, replace(source, name="shown"), name="shown")
        assert estimated(connection, shown).records == 5_000

    def test_partitions(self, connection: Connection) -> None:
        connection.execute(
            "create table reports (id bigint primary key, body text) partition by hash (id);"
            "create table part_0 partition of reports for values with (modulus 2, remainder 0);"
            "create table part_1 partition of reports for values with (modulus 2, remainder 1);"
            "insert into reports"
            " select n, repeat('word ', 20) from generate_series(1, 20000) as n"
        )
        found = estimated(connection, make_pipeline(connection))
        assert found.sampled < found.records
        assert found.records == pytest.approx(20_000, rel=2 * found.margin)


def test_rows_of_the_source_that_get_a_vector_are_not_told_of(connection: Connection) -> None:
    source = make_source(connection, ["The pump stopped."])
    pipeline = make_pipeline(
        connection, source, target=source, chunking="none", into_column="vector"
    )
    for each in estimated(connection, pipeline).storage:
        assert (each.table, each.key_indexes, each.wal) == (None, None, None)
        assert each.vector_index


def test_empty_source_is_said(connection: Connection) -> None:
    pipeline = make_pipeline(connection, make_source(connection))
    with pytest.raises(UsageError, match=r"public\.reports has no rows: there is nothing"):
        estimated(connection, pipeline)


def test_a_function_of_a_view_changes_nothing(connection: Connection) -> None:
    source = make_source(connection, ["a text"])
    connection.execute(
        "create table seen (id bigint);"
        "create function look(id bigint) returns text language sql volatile as"
        " 'insert into public.seen values (id); select ''a text'''"
    )
    connection.execute("create view looked as select id, look(id) as body from reports")
    pipeline = make_pipeline(connection, replace(source, name="looked"))
    before = one_value(connection, "select count(*) from seen")
    with pytest.raises(PipelineFault, match="read-only transaction"):
        estimated(connection, pipeline)
    assert one_value(connection, "select count(*) from seen") == before


SOURCE_OPTIONS = ("--source-table", "reports", "--text-field", "body")


class TestCommand:
    def test_before_anything_is_made(self, empty_conninfo: str) -> None:
        with connect(empty_conninfo) as connection:
            make_source(connection, ["The pump stopped.", "", "An alarm was heard."])
            before = objects(connection)
            ran = pgembed(
                empty_conninfo, "estimate", "mine", *SOURCE_OPTIONS, "--rate", "0.5", "--json"
            )
            assert objects(connection) == before
        found = json.loads(ran.stdout)
        assert (found["records"], found["chunks"], found["empty_records"]) == (3, 2, 1)
        assert found["hours"] == pytest.approx(4 / 3600)
        assert {each["vectors"] for each in found["storage"]} == {"vector", "halfvec"}

    def test_of_a_pipeline_that_is_there(self, connection: Connection, conninfo: str) -> None:
        make_source(connection, ["The pump stopped."])
        pgembed(conninfo, "create", "reports", *SOURCE_OPTIONS)
        ran = pgembed(conninfo, "estimate", "reports")
        assert "all 1 records were looked at" in ran.stdout
        assert "this machine" in ran.stdout
        assert len(ran.stdout.splitlines()) < 30

    def test_dry_run_makes_nothing(self, connection: Connection, conninfo: str) -> None:
        make_source(connection, ["The pump stopped."])
        before = objects(connection)
        ran = pgembed(conninfo, "create", "reports", *SOURCE_OPTIONS, "--dry-run")
        assert ran.stdout.splitlines()[-1] == "nothing was made"
        assert objects(connection) == before
        assert one_value(connection, "select count(*) from pgembed.pipelines") == 0

    def test_dry_run_refuses_what_could_not_be_made(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, ["The pump stopped."])
        connection.execute("create table reports_vectors (id bigint)")
        ran = pgembed(conninfo, "create", "reports", *SOURCE_OPTIONS, "--dry-run")
        assert "exists already" in (ran.error or "")

    def test_options_without_a_source(self, conninfo: str) -> None:
        ran = pgembed(conninfo, "estimate", "reports", "--chunk-size", "64")
        assert "--source-table" in (ran.error or "")


def objects(connection: Connection) -> list[tuple[object, ...]]:
    """Return whatever there is in the database."""
    return connection.execute(
        "select relnamespace::regnamespace::text, relname from pg_class order by 1, 2"
    ).fetchall()
