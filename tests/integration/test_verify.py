"""pgembed verify: a random sample of what is stored, embedded again and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed import Database, Pipeline, Worker
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.verification import sample
from pgqueue_embed.verification.sample import draw_chunks
from tests.support.commands import pgembed
from tests.support.corpus import make_source, set_text
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_row
from tests.support.zoo import Animal
from tests.support.zoo_tokenizers import BERT

pytestmark = pytest.mark.filterwarnings("ignore:.* does not know")

WORDS = ("infusion", "pump", "stopped", "and", "nobody", "was", "hurt", "when", "alarm", "rang")
RECORDS = 30


def text(number: int) -> str:
    """Return a text of about three chunks that no other record has."""
    sentences = [[WORDS[(number + k * step) % len(WORDS)] for k in range(7)] for step in (1, 5, 7)]
    return ". ".join(map(" ".join, sentences))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    animal = Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT)
    return animal.save(tmp_path_factory.mktemp("model") / "model")


def embedded(conninfo: str, connection: Connection, model: Path, **options: Any) -> Pipeline:
    """Return a pipeline whose records a worker has embedded."""
    make_source(connection, [text(number) for number in range(RECORDS)])
    options = {"chunk_size": 12, "overlap_tokens": 0, "document_prompt": "note: ", **options}
    reports = Database(conninfo).create(
        "reports", source_table="reports", text_field="body", model=str(model), **options
    )
    reports.enqueue()
    work(conninfo)
    return reports


def work(conninfo: str) -> None:
    with Worker(Database(conninfo), drain=True, device="cpu") as running:
        assert running.wait(60) == "drained"


KINDS: dict[str, dict[str, Any]] = {
    "chunks": {},
    "halfvec, truncated, parts": {
        "vector_type": "halfvec",
        "truncate_dim": 8,
        "partition_by": "hash:3",
    },
    "without texts": {"text": False},
    "chunk template": {"chunk_template": "$id: $chunk", "chunk_size": 20},
    "column": {"chunking": "none", "into_column": "vector"},
}


def corrupt(connection: Connection, record: int) -> None:
    """Give the chunks of a record the vector of another one."""
    pipeline = load_pipeline(connection, "reports")
    key = "id" if pipeline.spec.into_column else "fulltext_id"
    vector = pipeline.spec.columns.embedding
    connection.execute(
        f"update {pipeline.target} set {vector} = (select {vector} from {pipeline.target}"
        f" where {key} = {record + 1} limit 1) where {key} = {record}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_worker_wrote_agrees_and_what_was_changed_since_is_found_and_put_back(
    conninfo: str, connection: Connection, model: Path, kind: str
) -> None:
    reports = embedded(conninfo, connection, model, **KINDS[kind])
    found = reports.verify()
    assert len(found.compared) >= RECORDS
    assert (found.outdated, found.differing, found.interval[1]) == (0, (), 1.0)
    (worker,) = found.groups("worker")
    assert worker.value is not None
    used = connection.execute("select distinct precision from pgembed.workers").fetchall()
    assert [(each.value,) for each in found.groups("precision")] == used
    corrupt(connection, 3)
    found = reports.verify()
    assert {each.key for each in found.differing} == {"3"}
    assert connection.execute("select from pgembed.work").rowcount == 0
    reports.verify(requeue=True)
    work(conninfo)
    assert reports.verify().differing == ()


def test_command_shows_what_differs_and_tells_by_its_exit_code(
    conninfo: str, connection: Connection, model: Path
) -> None:
    embedded(conninfo, connection, model)
    ran = pgembed(conninfo, "verify", "reports")
    assert ran.exit_code == 0
    (total,) = one_row(connection, "select count(*) from reports_vectors")
    assert ran.stdout.startswith(f"{total} of {total} vectors agree with fp32")
    assert " to 100.0 % do, with 95 % confidence" in ran.stdout
    connection.execute(
        "update reports_vectors set embedding = array_fill(2, array[32])::vector"
        " where fulltext_id = 7 and chunk_index = 0"
    )
    ran = pgembed(conninfo, "verify", "reports")
    assert ran.exit_code == 1
    (row,) = [line.split() for line in ran.stdout.splitlines() if line.startswith("7 ")]
    assert row[-1] == "11.31"
    assert "Worker" in ran.stdout
    assert "pgembed verify reports --requeue" in ran.stdout
    ran = pgembed(conninfo, "verify", "reports", "--requeue", "--json")
    assert ran.exit_code == 0
    told = json.loads(ran.stdout)
    assert (told["compared"], told["requeued"], len(told["differing"])) == (total, 1, 1)
    assert told["interval_95"][0] < told["agreeing_share"] < told["interval_95"][1]
    assert connection.execute("select keys, embed_again from pgembed.work").fetchall() == [
        (["7"], True)
    ]


def test_chunks_of_records_that_changed_since_are_not_held_against_anybody(
    conninfo: str, connection: Connection, model: Path
) -> None:
    reports = embedded(conninfo, connection, model, **KINDS["chunk template"])
    source = load_pipeline(connection, "reports").source
    set_text(connection, source, 3, "alarm alarm alarm")
    connection.execute("delete from reports where id = 4")
    found = reports.verify()
    assert found.outdated >= 2
    assert found.differing == ()
    assert {each.key for each in found.compared}.isdisjoint({"3", "4"})


def test_nothing_stored_is_nothing_to_compare(
    conninfo: str, connection: Connection, model: Path
) -> None:
    make_source(connection, ["nobody was hurt"])
    reports = Database(conninfo).create(
        "reports",
        source_table="reports",
        text_field="body",
        model=str(model),
        chunk_size=12,
        overlap_tokens=0,
    )
    assert reports.verify().compared == ()
    ran = pgembed(conninfo, "verify", "reports")
    assert (ran.exit_code, ran.stdout) == (0, "reports has no vectors to compare\n")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"sample": 0}, "^sample 0"),
        ({"sample": 10**20}, f"^sample {10**20}"),
        ({"min_cosine": 1.5}, "^min_cosine 1.5"),
    ]
    for wrong, message in refused:
        with pytest.raises(UsageError, match=message):
            reports.verify(**wrong)


def test_each_chunk_has_the_same_chance_however_full_its_block_is(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the rows lies in a fiftieth of the blocks."""
    pipeline = make_pipeline(connection, make_source(connection, []), dimensions=3)
    connection.execute(
        "insert into reports_chunks"
        " (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, embedding)"
        " select number, number || '_0', 0, repeat('x', case when number <= 1000 then 1 else 1500"
        " end), 0, 1, 1, '[1, 0, 0]' from generate_series(1, 3000) as listed (number)"
    )
    monkeypatch.setattr(sample, "BLOCKS_A_CHUNK", 2)
    shares = []
    for _ in range(40):
        drawn = draw_chunks(connection, pipeline, 50)
        assert len({each.key for each in drawn}) == 50
        shares.append(sum(each.text == "x" for each in drawn) / 50)
    assert 0.2 < sum(shares) / 40 < 0.47
