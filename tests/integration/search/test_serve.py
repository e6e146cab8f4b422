"""Searches over HTTP and for assistants: what a search of one's own finds, and clear refusals."""

from __future__ import annotations

import base64
import itertools
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.search_server import overload
from pgqueue_embed.untrusted.plain_json import json_text
from pgqueue_embed.vector_search import query
from pgqueue_embed.vector_search.hit_json import hit_json
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.web_server import server as web_server
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.fakes import unit_vector
from tests.support.serving import BREAKING, QUERY, SEARCH, TOO_LONG, Served, serving, status_of

_numbers = itertools.count()


@pytest.fixture
def held(served: Served) -> Iterator[Event]:
    """The model stands still, in a pass that it has begun, until the event is set."""
    served.model.hold = hold = Event()
    served.model.entered.clear()
    served.model.batches.clear()
    text = f"first {next(_numbers)}"  # one that is not in the cache
    with ThreadPoolExecutor(1) as first:
        first.submit(served.post, "/v1/embeddings", {"model": "reports", "input": text})
        assert served.model.entered.wait(30)
        try:
            yield hold
        finally:
            hold.set()
            served.model.hold = None


REQUESTS: list[dict[str, Any]] = [
    {},
    {"limit": 7, "offset": 3, "threshold": -1.0},
    {"where": "kind = 7 and body like '%1%'", "columns": ["kind", "made"], "threshold": -1},
    {"per_record": True, "limit": 5, "threshold": -0.5},
    {"where": "kind = 5000"},
    {"mmr": 0.3, "rerank_top": 20, "threshold": -1},
]


@pytest.mark.parametrize("asked", REQUESTS)
def test_hits_are_those_of_a_search_of_ones_own(
    served: Served, shared_conninfo: str, asked: dict[str, Any]
) -> None:
    given = {**asked, "columns": tuple(asked.get("columns", ()))}
    request = SearchRequest(**given)
    with connect(shared_conninfo) as connection:
        pipeline = load_pipeline(connection, "reports")
        hits = search(connection, pipeline, unit_vector(QUERY), request)
    expected = json.loads(json_text([hit_json(hit, request) for hit in hits]))
    answer = served.post("/search", {"pipeline": "reports", "query": QUERY, **asked})
    assert answer.json() == {"hits": expected}
    assert bool(expected) == (asked.get("where") != "kind = 5000")


def test_filter_is_data_and_finds_what_the_same_condition_does(served: Served) -> None:
    common = {"pipeline": "reports", "query": QUERY, "threshold": -1, "columns": ["kind"]}
    where = "kind in (7, 8) and made >= '2026-02-01'"
    wanted = {"kind": [7, 8], "made": {">=": "2026-02-01"}}
    by_where = served.post("/search", {**common, "where": where}).json()
    by_filter = served.post("/search", {**common, "filter": wanted}).json()
    assert by_filter == by_where
    assert len(by_filter["hits"]) == 5
    assert served.post("/search", {**common, "filter": {}}).json()["hits"]
    hostile = {**common, "filter": {"body": "' or true --"}}
    assert served.post("/search", hostile).json() == {"hits": []}


def test_without_a_threshold_there_are_as_many_hits_as_were_asked_for(served: Served) -> None:
    asked = {**SEARCH, "filter": {"kind": 7}, "limit": 1000}
    hits = served.post("/search", asked).json()["hits"]
    assert len(hits) == 80
    assert hits[-1]["score"] < 0
    assert len(served.post("/search", {**asked, "threshold": 0}).json()["hits"]) < 80


def test_numbers_keep_all_their_digits_on_both_ways(served: Served, shared_conninfo: str) -> None:
    amount = "12345678901234567890.123"
    asked = f'"limit": 1, "filter": {{"amount": {amount}}}, "columns": ["amount", "extra"]'
    body = f'{{"pipeline": "reports", "query": "{QUERY}", "threshold": -1, {asked}}}'
    with connect(shared_conninfo) as connection:
        connection.execute(f"alter table public.reports add column amount numeric default {amount}")
        extra = f'{{"a": [{amount}, 1e-9]}}'
        connection.execute(f"alter table public.reports add column extra jsonb default '{extra}'")
        try:
            answer = served.client.post("/search", content=body.encode())
        finally:
            connection.execute("alter table public.reports drop column amount, drop column extra")
    assert answer.status_code == 200, answer.text
    assert f'"columns": {{"amount": {amount}, "extra": {{"a": [{amount}, 1E-9]}}}}' in answer.text


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("7", 80),
        ("7e0", 80),
        ("70E-1", 80),
        ("7.00000000000000000001", 0),
        ("7000000000000000000001e-21", 0),
        ('{"<": 1e400}', 4000),
        ('{"<": 1.5e400}', 4000),
    ],
)
def test_number_is_compared_as_it_is_written(
    served: Served, shared_conninfo: str, wanted: str, found: int
) -> None:
    asked = f'"limit": 1000, "filter": {{"exact": {wanted}}}'
    body = f'{{"pipeline": "reports", "query": "a", {asked}}}'
    with connect(shared_conninfo) as connection:
        connection.execute("alter table public.reports add column exact numeric")
        try:
            connection.execute("update public.reports set exact = kind")
            answer = served.client.post("/search", content=body.encode())
        finally:
            connection.execute("alter table public.reports drop column exact")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["hits"]) == min(1000, found)


INPUT = {"model": "reports", "input": "a"}


REFUSED: list[tuple[str, object, int, str]] = [
    ("/search", b"", 400, "no JSON"),
    ("/search", b"{", 400, "no JSON"),
    ("/search", b"\xff", 400, "no JSON"),
    ("/search", b"[" * 100_000, 400, "nested too deeply"),
    ("/search", b'{"pipeline": "reports", "query": "a", "threshold": NaN}', 400, "NaN"),
    ("/search", b'{"pipeline": "reports", "query": "a", "threshold": 1e999}', 400, "threshold"),
    ("/search", b'{"pipeline": "reports", "query": "a", "limit": 1' + b"0" * 5000, 400, "JSON"),
    ("/search", [], 400, "no JSON object"),
    ("/search", {"query": QUERY}, 400, "^pipeline: give a text"),
    ("/search", {"pipeline": "reports"}, 400, "^query: give a text"),
    ("/search", {**SEARCH, "query": " "}, 400, "^query: give"),
    ("/search", {**SEARCH, "query": ["a"]}, 400, "^query: give"),
    ("/search", {**SEARCH, "query": "\ud800"}, 400, "UTF-8|no JSON"),
    ("/search", {**SEARCH, "query": TOO_LONG}, 400, "999 tokens"),
    ("/search", {**SEARCH, "k": 3}, 400, "'k' is none of the fields"),
    ("/search", {**SEARCH, "pipeline": "none"}, 404, "no pipeline 'none' here; there is reports"),
    ("/search", {**SEARCH, "limit": 0}, 400, "^limit 0: give at least 1"),
    ("/search", {**SEARCH, "limit": 1001}, 400, "^limit 1001: give at most 1,000"),
    ("/search", {**SEARCH, "limit": True}, 400, "^limit True"),
    ("/search", {**SEARCH, "limit": "5"}, 400, "^limit '5'"),
    ("/search", {**SEARCH, "offset": -1}, 400, "^offset -1"),
    ("/search", {**SEARCH, "offset": 1.5}, 400, "^offset 1.5"),
    ("/search", {**SEARCH, "offset": 10_001}, 400, "^offset 10001: give at most 10,000"),
    ("/search", {**SEARCH, "threshold": 2}, 400, "^threshold 2"),
    ("/search", {**SEARCH, "mmr": 2}, 400, "^mmr 2: give"),
    (
        "/search",
        {**SEARCH, "hybrid": True},
        400,
        "; do it: pgembed index reports --lexical$",
    ),
    ("/search", {**SEARCH, "hybrid": 1}, 400, "^hybrid 1: give"),
    ("/search", {**SEARCH, "hybrid_weight": 0.5}, 400, "^hybrid_weight is of a hybrid search"),
    ("/search", {**SEARCH, "rerank_top": 0}, 400, "^rerank_top 0: give"),
    ("/search", {**SEARCH, "per_record": 1}, 400, "^per_record 1"),
    ("/search", {**SEARCH, "columns": "kind"}, 400, "^columns 'kind': give a list"),
    ("/search", {**SEARCH, "columns": ["kind", 1]}, 400, "give a list of names"),
    ("/search", {**SEARCH, "columns": {}}, 400, "give a list of names"),
    ("/search", {**SEARCH, "hybrid": ""}, 400, "^hybrid '': give"),
    ("/search", {**SEARCH, "threshold": 10**400}, 400, "^threshold 1000"),
    ("/search", {**SEARCH, "mmr": 10**400}, 400, "^mmr 1000"),
    ("/search", {**SEARCH, "hybrid": True, "hybrid_weight": 10**400}, 400, "^hybrid_weight 1000"),
    ("/search", {**SEARCH, "filter": {"kind": {"<": None}}}, 400, "null is compared by"),
    ("/search", {**SEARCH, "columns": ["none"]}, 400, "^columns none: neither"),
    ("/search", {**SEARCH, "where": ""}, 400, "^where is empty"),
    ("/search", {**SEARCH, "where": 1}, 400, "^where 1"),
    ("/search", {**SEARCH, "where": "kind = "}, 400, "^where is not a condition"),
    ("/search", {**SEARCH, "where": "true; drop table reports"}, 400, "^where is not a condition"),
    ("/search", {**SEARCH, "where": "kind = 0 \x00"}, 400, "NUL|0x00"),
    ("/search", {**SEARCH, "where": "kind / 0 = 1"}, 400, "by where kind / 0 = 1: .*by zero"),
    ("/search", {**SEARCH, "filter": {"made": "soon"}}, 400, "^the filter is not a condition over"),
    ("/search", {**SEARCH, "filter": {"body": {"like": "\\"}}}, 400, "by the filter: .*escape"),
    ("/search", {**SEARCH, "filter": {"body": "\x00"}}, 400, "^filter: .*Unicode"),
    ("/search", {**SEARCH, "where": "kind = 1", "filter": {}}, 400, "give one of them"),
    ("/search", {**SEARCH, "where": "pgembed.pause('reports', '') is null"}, 400, "read-only"),
    ("/search", {**SEARCH, "filter": {"none": 1}}, 400, "the filter names 'none'"),
    ("/search", {**SEARCH, "filter": [1]}, 400, "^filter: give an object"),
    ("/v1/embeddings", {**INPUT, "model": "gpt-4"}, 404, "no model 'gpt-4' here"),
    ("/v1/embeddings", {"input": "a"}, 400, "^model: give"),
    ("/v1/embeddings", {"model": "reports"}, 400, "^input: give"),
    ("/v1/embeddings", {**INPUT, "input": []}, 400, "^input: give"),
    ("/v1/embeddings", {**INPUT, "input": ["a", 1]}, 400, "^input: give"),
    ("/v1/embeddings", {**INPUT, "input": [[1, 2]]}, 400, "check_embedding_ctx_length"),
    ("/v1/embeddings", {**INPUT, "input": ["a"] * 2049}, 400, "at most 2,048"),
    ("/v1/embeddings", {**INPUT, "input": ["a", ""]}, 400, "empty"),
    ("/v1/embeddings", {**INPUT, "encoding_format": "int8"}, 400, "^encoding_format 'int8'"),
    ("/v1/embeddings", {**INPUT, "encoding_format": {}}, 400, "^encoding_format {}"),
    ("/v1/embeddings", {**INPUT, "dimensions": 4}, 400, "^dimensions 4: the vectors"),
    ("/none", {}, 404, "is nothing here"),
    ("/health", {}, 405, "is nothing here"),
    ("/query-vector", {}, 404, "is nothing here"),
]


def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_changed(served: Served) -> None:
    for path, body, status, says in REFUSED:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = served.client.post(path, content=content)
        assert "error" in answer.json(), (body, answer.text)
        error = answer.json()["error"]
        assert answer.status_code == status, (body, answer.text)
        assert error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]
        assert re.search(says, error["message"]), (body, error["message"])
        assert "--" not in re.sub("pgembed [^;,]*", "", error["message"]), error["message"]
    assert served.post("/search", SEARCH).json()["hits"]


def test_vectors_come_as_openai_gives_them(served: Served) -> None:
    texts = ["battery overheated", "pump stopped", "battery overheated"]
    asked = {"model": "reports", "input": texts, "user": "me", "dimensions": 8}
    answer = served.post("/v1/embeddings", asked).json()
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    for text, each in zip(texts, answer["data"], strict=True):
        np.testing.assert_allclose(each["embedding"], unit_vector(text), atol=1e-7)
    assert answer["model"] == "reports"
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    packed = served.post(
        "/v1/embeddings",
        {"model": "fake/sha256", "input": texts[0], "encoding_format": "base64"},
    ).json()
    found = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(found, unit_vector(texts[0]))
    models = served.client.get("/v1/models").json()["data"]
    assert [(each["id"], each["dimensions"]) for each in models] == [("reports", 8)]


def test_queries_that_come_together_are_one_batch(served: Served, held: Event) -> None:
    texts = [f"query {number}" for number in range(20)]
    with ThreadPoolExecutor(20) as clients:
        asked = [
            clients.submit(served.post, "/v1/embeddings", {"model": "reports", "input": text})
            for text in texts
        ]
        wait_until(lambda: waiting(served) == len(texts), "all texts wait")
        held.set()
        for text, answer in zip(texts, asked, strict=True):
            vector = answer.result().json()["data"][0]["embedding"]
            np.testing.assert_allclose(vector, unit_vector(text), atol=1e-7)
    assert sorted(served.model.batches[1]) == sorted(texts)
    assert len(served.model.batches) == 2


def test_one_query_that_breaks_a_batch_fails_alone(served: Served, held: Event) -> None:
    texts = ["good", f"{BREAKING} news", TOO_LONG, "fine"]
    with ThreadPoolExecutor(4) as clients:
        asked = [
            clients.submit(served.post, "/v1/embeddings", {"model": "reports", "input": text})
            for text in texts
        ]
        wait_until(lambda: waiting(served) == len(texts), "all texts wait")
        held.set()
        statuses = [each.result().status_code for each in asked]
    assert statuses == [200, 503, 400, 200]


def test_more_than_can_be_answered_soon_is_told_to_come_again(
    served: Served, held: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "MOST_REQUESTS", 1)
    refused = served.post("/search", SEARCH)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert served.client.get("/health").json()["status"] == "ok"
    monkeypatch.undo()
    many = {"model": "reports", "input": ["a"] * 2_000}
    with ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(served.post, "/v1/embeddings", many) for _ in range(3)]
        wait_until(lambda: waiting(served) == 4_000, "the queue is full")
        wait_until(lambda: any(each.done() for each in asked), "one is refused")
        held.set()
        assert sorted(each.result().status_code for each in asked) == [200, 200, 429]
    assert served.post("/search", SEARCH).status_code == 200


def test_nothing_is_computed_for_a_client_that_has_left(served: Served, held: Event) -> None:
    body = json.dumps({"model": "reports", "input": [f"text {n}" for n in range(2_000)]})
    place = urlsplit(served.url)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 0)) as client:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        wait_until(lambda: waiting(served) == 2_000, "the texts wait")
    (batches,) = served.encoders._batches.values()
    wait_until(lambda: batches._requests[0].future.cancelled(), "the request is given up")
    held.set()
    wait_until(lambda: waiting(served) == 0, "nothing waits")
    assert [len(each) for each in served.model.batches] == [1]


def waiting(served: Served) -> int:
    """Return how many texts wait for the model."""
    (batches,) = served.encoders._batches.values()
    return batches._waiting_texts


SLEEPING = (
    "select count(*) from pg_stat_activity"
    " where wait_event = 'PgSleep' and datname = current_database()"
)


def test_statement_of_a_client_that_has_left_is_ended(served: Served, shared_conninfo: str) -> None:
    body = json.dumps({**SEARCH, "where": "pg_sleep(60) is not null"})
    place = urlsplit(served.url)
    with connect(shared_conninfo) as looking:
        with socket.create_connection((str(place.hostname), place.port or 0)) as client:
            head = f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
            client.sendall(f"{head}\r\n\r\n{body}".encode())
            wait_until(lambda: looking.value(SLEEPING), "PostgreSQL searches")
        wait_until(lambda: not looking.value(SLEEPING), "PostgreSQL has ended it")


def test_answer_that_is_broken_off_at_the_end_is_worth_trying_again(
    shared_conninfo: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    del served  # it has made the pipeline
    monkeypatch.setattr(web_server, "GRACE_SECONDS", 0.1)
    with (
        connect(shared_conninfo) as looking,
        serving(shared_conninfo) as ending,
        ThreadPoolExecutor(1) as client,
    ):
        slow = {**SEARCH, "where": "pg_sleep(60) is not null"}
        asked = client.submit(ending.post, "/search", slow)
        wait_until(lambda: looking.value(SLEEPING), "PostgreSQL searches")
        ending.server.stop()
        answer = asked.result()
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "being stopped" in answer.json()["error"]["message"]
        wait_until(lambda: not looking.value(SLEEPING), "PostgreSQL has ended it")


def test_search_that_takes_too_long_is_worth_trying_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "CONDITION_SECONDS", 0.1)
    answer = served.post("/search", {**SEARCH, "where": "pg_sleep(60) is not null"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "did not end in time" in answer.json()["error"]["message"]


def test_condition_leaves_a_session_as_it_was(served: Served) -> None:
    def hits(where: str) -> int:
        answer = served.post("/search", {**SEARCH, "where": where, "threshold": -1})
        return len(answer.json()["hits"])

    setting = "set_config('search_path', 'public', false) is not null and"
    assert hits(f"{setting} set_config('pgembed.mark', 'set', false) is not null") == 5
    # The last session that came back is the first one that is lent.
    assert hits("current_setting('pgembed.mark', true) = 'set'") == 0
    assert hits("current_setting('search_path') = 'public'") == 0


def test_sessions_that_were_lost_are_replaced(served: Served, shared_conninfo: str) -> None:
    with connect(shared_conninfo) as connection:
        for _ in range(3):
            assert served.post("/search", SEARCH).status_code == 200
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'pgembed serve' and datname = current_database()"
            )


def test_missing_right_is_named_as_the_grant_that_gives_it(
    served: Served, shared_conninfo: str
) -> None:
    del served
    role = "serve_reader"
    with connect(shared_conninfo) as admin:
        admin.execute(f"create role {role} login password 'secret'")
        try:
            assert grants_asked_for(shared_conninfo, admin, role) == {
                f"grant usage on schema pgembed to {role}",
                f"grant select on pgembed._yoyo_migration to {role}",
                f"grant select on pgembed.pipelines to {role}",
                f"grant select on pgembed.vector_indexes to {role}",
                f"grant select (id, kind) on public.reports to {role}",
                f"grant select on public.reports_chunks to {role}",
            }
        finally:
            admin.execute(f"drop owned by {role}; drop role {role}")


def grants_asked_for(conninfo: str, admin: Connection, role: str) -> set[str]:
    """Grant what a search with a condition asks for until it works; returns all of it."""
    given: set[str] = set()
    with status_of(make_conninfo(conninfo, user=role, password="secret")) as search_once:
        while (answer := search_once(where="kind = 7"))[0] != 200:
            status, message = answer
            assert status == 403, message
            grants = message.partition("; missing: ")[2].split("; ")
            assert not given & set(grants), message
            for grant in grants:
                admin.execute(grant)
            given |= set(grants)
    return given


def test_database_that_is_away_is_worth_trying_again(shared_conninfo: str) -> None:
    with status_of(make_conninfo(shared_conninfo, port="1")) as search_once:
        status, message = search_once()
    assert status == 503
    assert "cannot connect" in message
    assert "password" not in message


def test_server_does_not_start_on_a_device_that_is_not_there(conninfo: str) -> None:
    """It would answer that no pipeline can be searched."""
    for device, why in (
        ("gpu", "unknown device 'gpu'"),
        ("cuda:99", "this machine has no cuda:99"),
    ):
        ran = pgembed(conninfo, "serve", "--port", "0", "--device", device)
        assert (ran.exit_code, (ran.error or "")[: len(why)]) == (2, why)
