"""Evaluating by judgements: the measures are trec_eval's, and two pipelines are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search import query_vector
from pgqueue_embed.vector_search.judgements import read_judgements, read_queries
from pgqueue_embed.vector_search.measures import by_query, estimates
from tests.support.commands import pgembed
from tests.support.directions import VECTORS, fill
from tests.support.documents import marked_block
from tests.support.pipelines import make_pipeline

DOCUMENT = Path(__file__).parents[3] / "docs" / "search.md"
TREC_EVAL = Path(__file__).parents[2] / "data" / "trec_eval.json"


@pytest.fixture
def reports(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Fifteen hundred vectors; a query is the key of the vector that it is encoded as."""

    class Encoder:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def encode(self, query: str, _truncate_dim: int | None) -> object:
            return VECTORS[int(query) - 1]

    monkeypatch.setattr(query_vector, "QueryEncoder", Encoder)
    return fill(connection)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


Write = Callable[[str, str], Path]


def test_measures_are_those_of_trec_eval() -> None:
    """What pytrec_eval 0.5 says of these rankings: ndcg_cut_10, recall_100, recip_rank of ten."""
    known = json.loads(TREC_EVAL.read_text())
    expected = list(known["measures"].values())
    np.testing.assert_allclose(by_query(known["rankings"], known["judgements"]), expected)


def test_intervals_are_those_of_a_mean_and_the_same_again() -> None:
    values = np.random.default_rng(1).normal([0.5, 0.0], [0.2, 0.01], size=(400, 2))
    wide, narrow = estimates(values, seed=0)
    for found, column in ((wide, values[:, 0]), (narrow, values[:, 1])):
        assert found.mean == pytest.approx(column.mean())
        half = 1.96 * column.std() / np.sqrt(len(column))
        assert found.high - found.mean == pytest.approx(half, rel=0.2)
        assert found.mean - found.low == pytest.approx(half, rel=0.2)
    assert estimates(values, seed=0) == [wide, narrow] != estimates(values, seed=1)


TURNED = """
insert into public.other_chunks (fulltext_id, chunk_id, chunk_index, text_chunk, start_char,
    end_char, tokens, embedding)
select fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, (
        select array_agg(case when fulltext_id %% 2 = 0 then -each else each end order by at)
        from unnest(embedding::real[]) with ordinality as listed (each, at)
    )::public.vector
from public.reports_chunks
where fulltext_id <> %s
"""


def test_pipelines_are_compared_by_the_same_queries(
    conninfo: str, connection: Connection, reports: Pipeline, write: Write
) -> None:
    """The other one has the opposite of every second vector, and lacks the last one."""
    target = Table(schema="public", name="other_chunks")
    make_pipeline(connection, name="other", dimensions=reports.dimensions, target=target)
    connection.execute(TURNED, (41,))
    queries = write("queries.tsv", "".join(f"q{key}\t{key}\n" for key in range(1, 43)))
    qrels = "".join(f"q{key} 0 {key} 1\n" for key in range(1, 42)) + "q42 0 42 0\n"
    files = ("--queries", str(queries), "--judgements", str(write("qrels", qrels)))
    ran = pgembed(conninfo, "evaluate", "reports", *files, "--against", "other", "--json")
    found: dict[str, Any] = json.loads(ran.stdout)
    assert (found["queries"], found["relevant"]) == (41, 41)
    first, second = found["systems"]
    assert (first["pipeline"], first["missing"]) == ("reports", 0)
    assert (second["pipeline"], second["missing"]) == ("other", 1)
    for measure, share in (("nDCG@10", 20 / 41), ("Recall@100", 20 / 41), ("MRR@10", 20 / 41)):
        assert first["measures"][measure] == {"mean": 1.0, "low": 1.0, "high": 1.0}
        assert second["measures"][measure]["mean"] == pytest.approx(share)
        difference = found["difference"][measure]
        assert difference["mean"] == pytest.approx(share - 1)
        assert difference["low"] < share - 1 < difference["high"] < 0
    shown = pgembed(conninfo, "evaluate", "reports", *files, "--against", "other").stdout
    lines = [line for line in shown.splitlines() if "@" in line]
    assert [line.split()[0] for line in lines[:3]] == ["nDCG@10", "Recall@100", "MRR@10"]
    assert all(len(line) < 80 for line in lines)
    assert "by 41 queries with 41 relevant records" in shown
    assert "without vectors in other: 1 relevant record" in shown
    assert "other is worse by nDCG@10, Recall@100, MRR@10 than reports" in shown
    again = pgembed(conninfo, "evaluate", "reports", *files, "--against", "reports").stdout
    assert "these queries tell no difference between reports and reports" in again


def test_files_of_the_document_are_read(write: Write) -> None:
    def block(mark: str, language: str) -> Path:
        return write(mark, marked_block(DOCUMENT, f"{mark}: read by the tests", language))

    queries = read_queries(block("queries", ""))
    assert [each.id for each in queries] == ["q1", "q2"]
    judgements = read_judgements(block("qrels", ""))
    assert judgements == read_judgements(block("judgements", "json"))
    assert set(judgements) == {"q1", "q2"}


def test_files_are_of_several_forms(write: Write) -> None:
    words = [
        read_queries(write("queries", text))
        for text in (
            "1\tthe pump\n\n2\tthe stent\n",
            '{"_id": "1", "text": "the pump"}\n{"id": 2, "text": "the stent"}\n',
        )
    ]
    assert words[0] == words[1]
    assert [(each.id, each.text) for each in words[0]] == [("1", "the pump"), ("2", "the stent")]
    assert [each.id for each in read_queries(write("queries", "the pump\n"))] == [None]
    (parted,) = read_queries(write("queries", '{"id": "1", "text": "pump\u2028stent"}\r\n'))
    assert parted.text == "pump\u2028stent"
    expected = {"1": {'[1, "a b"]': 2.0}, "2": {"7": 1.0, "8": 0.0}}
    for text in (
        '1 0 [1, "a b"] 2\n2 0 7 1\n\n2\t0\t8\t0\n',
        '{"1": {"[1, \\"a b\\"]": 2}, "2": {"7": 1, "8": 0}}',
    ):
        assert read_judgements(write("judgements", text)) == expected
    lists = read_judgements(write("judgements", '{"1": [[1, "a b"]], "2": [7]}'))
    assert lists == {"1": {'[1, "a b"]': 1.0}, "2": {"7": 1.0}}


WRONG: tuple[tuple[str | None, str | None, str], ...] = (
    ("1\tpump\n1\tstent\n", "1 0 7 1", "has two queries of id 1"),
    ('{"id": 1}\n', "1 0 7 1", "line 1 has no text"),
    ("\n", "1 0 7 1", "has no queries"),
    ("the pump\n", "1 0 7 1", "have no ids, by which --judgements names them"),
    ("1\tpump\n", "", "has no judgements"),
    ("1\tpump\n", "1 0 7 1\n1 7 1\n", "line 2 is not of the form QUERY 0 KEY RELEVANCE"),
    ("1\tpump\n", "1 0 7 1\n1 0 7 0\n", "line 2: query 1 has another relevance of 7, above"),
    ("1\tpump\n", '{"1": {"7": 1}, "1": {"8": 1}}', "'1' is there twice"),
    ("1\tpump\n", '{"1": {"7": 1, "7": 0}}', "'7' is there twice"),
    ("1\tpump\n", "1 0 7 much\n", "line 1: the relevance 'much' is not a number"),
    ("1\tpump\n", '{"1": {"7": NaN}}', "the relevance nan is not a number"),
    ("1\tpump\n", '{"1": {"7": 1%s}}' % ("0" * 400), "is not a number"),
    ("1\tpump\n", '{"1": 7}', "query 1 has neither an object of keys"),
    ("1\tpump\n", '{"1": ', "is not valid JSON"),
    ("1\tpump\n", "1 0 7 0\n", "no query has a record of a relevance above 0"),
    ("1\tpump\n", "2 0 7 1\n", "query 2 is not in --queries"),
    ("1\t1\n", "1 0 seven 1\n", "'seven' cannot be a key of pipeline 'reports'"),
    ("1\t1\n", "1 0 70000 1\n", "none of the 1 records that --judgements calls relevant"),
    (None, "1 0 7 1\n", "--judgements are of queries; give their file, too"),
    ("1\t1\n", None, "--against compares by --judgements"),
)


def test_what_cannot_be_judged_is_said_in_one_line(
    conninfo: str, reports: Pipeline, write: Write
) -> None:
    for queries, judgements, words in WRONG:
        options = [
            part
            for option, text in (("--queries", queries), ("--judgements", judgements))
            if text is not None
            for part in (option, str(write(option, text)))
        ]
        ran = pgembed(conninfo, "evaluate", "reports", "--against", "reports", *options)
        assert ran.exit_code == 2
        assert words in (ran.error or "")
