"""Search by words and vectors: BM25 in SQL is that of a few lines of Python, and rows live on."""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from pathlib import Path

import pytest
from psycopg import sql

from pgqueue_embed import Database
from pgqueue_embed import search as search_of_programs
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import lexical, query_vector
from pgqueue_embed.vector_search.fusion import FUSED_DEPTH, fused
from pgqueue_embed.vector_search.lexical_index import build_lexical_index
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.commands import pgembed
from tests.support.lexical import (
    QUERY,
    TEXTS,
    ask,
    bm25,
    by_words,
    fill,
    keys,
    random_text,
)
from tests.support.pipelines import make_pipeline


@pytest.mark.on_both_servers(every_case=True)
@pytest.mark.parametrize("partition_by", [None, "hash:3"])
def test_bm25_is_that_of_python(
    connection: Connection, partition_by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "CANDIDATES", 10_000)
    source = random.Random(0)
    texts = [random_text(source, 20) for _ in range(200)]
    pipeline = fill(connection, texts, partition_by=partition_by)
    build_lexical_index(connection, pipeline)
    for _ in range(25):
        query = random_text(source, 5)
        found = {int(row[0]): row[-1] for row in by_words(connection, pipeline, query)}
        expected = {at: score for at, score in enumerate(bm25(texts, query), start=1) if score}
        assert found == pytest.approx(expected, abs=1e-6), query


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline of texts of which vectors put the last ones last."""
    pipeline = fill(connection, TEXTS)
    build_lexical_index(connection, pipeline)
    return pipeline


@pytest.mark.parametrize(
    ("words", "key"),
    [
        *(("ab-1234", "151"), ("AB1234", "151"), ("型号AB-1234", "151"), ("过热", "151")),
        *(("LOT00917/3", "152"), ("lot00917", "152"), ("stent fractured", "152")),
    ],
)
def test_what_vectors_miss_is_found_as_typed(
    connection: Connection, reports: Pipeline, words: str, key: str
) -> None:
    assert key in keys(ask(connection, reports, words))
    assert ask(connection, reports, words, lexical_weight=1.0)[0].key_text == key
    assert key not in keys(ask(connection, reports, words, lexical_weight=0.0))


def test_index_follows_whoever_writes(connection: Connection, reports: Pipeline) -> None:
    (old, *_) = ask(connection, reports, "AB-1234", lexical_weight=1.0)
    connection.execute(
        "update reports_chunks set text_chunk = 'model ZX-9' where fulltext_id = 151"
    )
    assert old.key_text not in keys(ask(connection, reports, "AB-1234", lexical_weight=1.0))
    assert ask(connection, reports, "zx-9", lexical_weight=1.0)[0].key_text == "151"
    connection.execute("delete from reports where id = 151")  # the source is not read for it
    assert ask(connection, reports, "zx-9", lexical_weight=1.0)[0].key_text == "151"
    connection.execute("delete from reports_chunks where fulltext_id = 151")
    assert "151" not in keys(ask(connection, reports, "zx-9", limit=1_000))


@pytest.mark.parametrize("per_record", [False, True])
def test_never_fewer_than_there_are_and_pages_are_of_one_order(
    connection: Connection, reports: Pipeline, per_record: bool
) -> None:
    words = "the stent of catheter 7"
    where = "kind = 0"
    whole = ask(connection, reports, words, where=where, per_record=per_record, limit=1_000)
    assert sorted(map(int, keys(whole))) == list(range(2, 153, 2))
    pages = [
        hit
        for at in range(0, 80, 20)
        for hit in ask(
            connection, reports, words, where=where, per_record=per_record, limit=20, offset=at
        )
    ]
    assert pages == whole
    assert "152" in keys(whole)[: FUSED_DEPTH // 2]


def test_common_words_have_candidates_with_all_of_them(
    connection: Connection, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "CANDIDATES", 5)
    (hit, *_) = ask(connection, reports, "the catheter number 149", lexical_weight=1.0)
    assert hit.key_text == "150"


@pytest.mark.parametrize("words", ["", "…", "unheardof", "it's \\ ' \x00 & | ! :*", "的" * 70_000])
def test_words_that_nothing_has_leave_what_is_near(
    connection: Connection, reports: Pipeline, words: str
) -> None:
    assert keys(ask(connection, reports, words, where="id < 4")) == ["1", "2", "3"]


def test_any_text_has_terms(connection: Connection) -> None:
    """A tsvector has a limit, and an index that refuses a text would refuse its record."""
    query = "select length(pgembed.terms(string_agg({}, ''))) from generate_series(1, 90000) as n"
    for each in ("md5(n::text) || ' '", "chr(19968 + n * 7919 % 20000)", "'a1-'", "'x'"):
        assert connection.value(query.format(each)) >= 0


def test_hybrid_without_an_index_says_how_to_make_one(
    connection: Connection, conninfo: str
) -> None:
    pipeline = fill(connection, ["a stent"])
    with pytest.raises(UsageError, match="are not indexed; do it: pgembed index reports --lexical"):
        ask(connection, pipeline, "stent")
    connection.execute("update pgembed.pipelines set lexical = true")
    with pytest.raises(UsageError, match="not indexed yet; a worker does it"):
        ask(connection, pipeline, "stent")
    assert (
        "built reports_chunks_text_chunk_lexical"
        in pgembed(conninfo, "index", "reports", "--lexical").stdout
    )
    assert keys(ask(connection, pipeline, "stent")) == ["1"]
    assert "already" in pgembed(conninfo, "index", "reports", "--lexical").stdout


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"words": "a", "lexical_weight": 1.5}, "--hybrid-weight 1.5: give a number from 0 to 1"),
        ({"lexical_weight": 0.5}, "--hybrid-weight is of a hybrid search; add --hybrid"),
    ],
)
def test_weights_that_cannot_be(given: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SearchRequest(**given).check()  # type: ignore[arg-type]


def test_vectors_in_a_column_have_no_words(connection: Connection, conninfo: str) -> None:
    connection.execute("create table public.reports as select 1 as id, 'a stent' as body")
    connection.execute("alter table public.reports add primary key (id)")
    pipeline = make_pipeline(connection, into_column="embedding", chunking="none")
    with pytest.raises(
        UsageError, match=r"--hybrid belongs to .* its vectors in a column of public"
    ):
        ask(connection, pipeline, "stent")
    for command in ("index", "alter"):
        refused = pgembed(conninfo, command, "reports", "--lexical")
        assert refused.exit_code == 2
        assert "a target table; reports has its vectors in a column" in (refused.error or "")


def test_fusion_is_by_ranks() -> None:
    vectors, words = ["a", "b", "c"], ["c", "d"]
    scores = fused(vectors, words, 0.5)
    assert list(scores) == ["c", "a", "d", "b"]
    assert scores["c"] == pytest.approx(61 / 2 * (1 / 63 + 1 / 61))
    assert list(fused(vectors, words, 0.0))[:3] == vectors
    assert list(fused(vectors, words, 1.0))[:2] == words
    many = list(range(FUSED_DEPTH + 5))
    assert list(fused(many, [FUSED_DEPTH + 2], 0.1))[-4:] == [100, 101, 103, 104]


class Encoder:
    """Encodes all words alike."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def encode(self, _words: str, _truncate_dim: int | None) -> object:
        return QUERY


@pytest.mark.parametrize("present", [None, 0.2])
def test_weight_that_the_other_half_finds_worse_is_not_kept(
    connection: Connection,
    conninfo: str,
    reports: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    present: float | None,
) -> None:
    """Two queries: one is for words alone, and the other one for vectors alone."""
    monkeypatch.setattr(query_vector, "QueryEncoder", Encoder)
    connection.execute("update pgembed.pipelines set lexical_weight = %s", (present,))
    queries, qrels = tmp_path / "queries", tmp_path / "qrels"
    queries.write_text("word\tthe catheter number 30\nvector\tthe catheter number 140\n")
    qrels.write_text("word 0 31 1\nvector 0 1 1\n")
    command = ("evaluate", "reports", "--queries", str(queries), "--judgements", str(qrels))
    by_word = None
    for seed in map(str, range(20)):
        ran = pgembed(conninfo, *command, "--seed", seed, "--json", "--dry-run")
        if json.loads(ran.stdout)["hybrid"]["weight"] > 0.5:
            by_word = seed
    assert by_word is not None
    ran = pgembed(conninfo, *command, "--seed", by_word)
    assert ran.exit_code == 0
    usual = present or lexical.USUAL_WEIGHT
    assert f"is worse by nDCG@10 than the {usual:g} of now" in ran.stdout
    assert "it is not kept, and searches are as before" in ran.stdout
    assert connection.value("select lexical_weight from pgembed.pipelines") == present
    found = json.loads(pgembed(conninfo, *command, "--seed", by_word, "--json").stdout)["hybrid"]
    assert (found["present"], found["kept"]) == (usual, False)
    assert found["change"]["nDCG@10"]["mean"] < 0


def test_evaluate_finds_the_weight_by_one_half_and_tells_it_by_the_other(
    connection: Connection,
    conninfo: str,
    reports: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Identifiers that vectors never find: words alone are best then."""
    monkeypatch.setattr(query_vector, "QueryEncoder", Encoder)
    queries, qrels = tmp_path / "queries", tmp_path / "qrels"
    asked = [(at, f"the catheter number {at}") for at in range(20, 40)]
    queries.write_text("".join(f"q{at}\t{words}\n" for at, words in asked))
    qrels.write_text("".join(f"q{at} 0 {at + 1} 1\n" for at, _ in asked))
    command = ("evaluate", "reports", "--queries", str(queries), "--judgements", str(qrels))
    kept = "select lexical_weight from pgembed.pipelines"
    assert "is the best weight" in pgembed(conninfo, *command, "--dry-run").stdout
    assert connection.value(kept) is None
    database = sql.Identifier(connection.info.dbname)
    read_only = sql.SQL("alter database {} set default_transaction_read_only = on")
    connection.execute(read_only.format(database))
    refused = pgembed(conninfo, *command)
    assert "is the best weight" in refused.stdout
    assert "the words' weight of reports is not kept: " in (refused.error or "")
    connection.execute(sql.SQL("alter database {} reset all").format(database))
    found = json.loads(pgembed(conninfo, *command, "--json").stdout)["hybrid"]
    assert found["queries"] == 10
    assert found["vectors"]["nDCG@10"]["mean"] == 0
    assert found["hybrid"]["nDCG@10"]["mean"] == 1
    assert found["difference"]["nDCG@10"]["mean"] == 1
    assert (found["present"], found["kept"]) == (lexical.USUAL_WEIGHT, True)
    assert connection.value(kept) == found["weight"] > 0.5
    assert run(connection, lexical.ready(reports)).weight == found["weight"]
    monkeypatch.setattr(query_vector, "_encoders", OrderedDict())
    program = Database(conninfo).pipeline("reports")
    (hit, *_) = search_of_programs(program, "the catheter number 30", hybrid=True)
    assert hit.key == 31
    with pytest.raises(UsageError, match="give a query, in words"):
        search_of_programs(program, vector=QUERY, hybrid=True)
    qrels.write_text("q20 0 21 1\n")
    assert "by 1 query" in pgembed(conninfo, *command).stdout
    assert connection.value(kept) == found["weight"]
