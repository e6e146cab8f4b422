"""The answers to an assistant over the protocol, by HTTP and by a program that it starts."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

from pgqueue_embed.search_server import assistants
from pgqueue_embed.vector_search import record as record_of
from tests.support.commands import pgembed
from tests.support.serving import SEARCH, Served

HEADERS = {"accept": "application/json, text/event-stream"}


def call(served: Served, method: str, **params: Any) -> Any:
    answer = served.client.post(
        "/mcp",
        json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
        headers=HEADERS,
    )
    return answer.json()["result"]


def tool(served: Served, name: str, **arguments: Any) -> Any:
    result = call(served, "tools/call", name=name, arguments=arguments)
    text = result["content"][0]["text"]
    return text if result.get("isError") else json.loads(text)


def test_assistant_finds_the_same_and_may_change_nothing(served: Served) -> None:
    tools = {each["name"]: each for each in call(served, "tools/list")["tools"]}
    assert set(tools) == {"search", "fetch_record", "list_pipelines"}
    assert all(each["annotations"]["readOnlyHint"] for each in tools.values())
    assert "where" not in tools["search"]["inputSchema"]["properties"]
    listed = tool(served, "list_pipelines")["pipelines"]
    assert [(each["name"], each["source"]) for each in listed] == [("reports", "public.reports")]
    asked = {"limit": 3, "filter": {"kind": 7}, "columns": ["made"]}
    found = tool(served, "search", **SEARCH, **asked)
    assert found == served.post("/search", {**SEARCH, **asked}).json()
    everything = tool(served, "search", **SEARCH, filter={"kind": 7}, limit=100)["hits"]
    assert len(everything) == 80
    key = found["hits"][0]["key"]
    record = tool(served, "fetch_record", pipeline="reports", key=key)
    assert record["text"].startswith(f"chunk 0 of {key}")
    assert [each["chunk_index"] for each in record["chunks"]] == [0, 1]
    assert record["has_more"] is False
    with patch.object(record_of, "MOST_CHUNKS", 1), patch.object(assistants, "MOST_CHUNKS", 1):
        beginning = tool(served, "fetch_record", pipeline="reports", key=key)
    assert [each["chunk_index"] for each in beginning["chunks"]] == [0]
    assert beginning["has_more"] is True
    assert "chunk 1 of" not in beginning["text"]
    assert tools["search"]["inputSchema"]["additionalProperties"] is False
    for name, arguments, says in (
        (
            "search",
            {**SEARCH, "filters": {}},
            "'filters' is no argument of search; there are pipeline, query, limit, offset, filter,"
            " columns, per_record, hybrid",
        ),
        (
            "list_pipelines",
            {"where": "true"},
            "'where' is no argument of list_pipelines; there are",
        ),
        ("no_such_tool", {}, "no_such_tool"),
        ("fetch_record", {"pipeline": "reports", "key": "999999"}, "no vectors of a record"),
        (
            "fetch_record",
            {"pipeline": "reports", "key": "x"},
            "'x' cannot be a key of pipeline 'reports': invalid input syntax for type integer:"
            ' "x"; its key is id (integer)',
        ),
        ("fetch_record", {"pipeline": "reports", "key": "9" * 30}, "; its key is id (integer)"),
        ("fetch_record", {"pipeline": "reports", "key": "\0"}, "NUL"),
        ("fetch_record", {"pipeline": "reports", "key": 7}, "key: Input should be a valid string"),
        ("fetch_record", {"pipeline": "reports"}, "key: Field required"),
        ("search", {**SEARCH, "filter": "kind = 1"}, "filter: Input should be a valid dict"),
        ("search", {**SEARCH, "filter": {"none": 1}}, "the filter names 'none'"),
        ("search", {**SEARCH, "filter": {"made": "soon"}}, "the filter is not a condition over"),
        ("search", {**SEARCH, "limit": 0}, "limit 0: give at least 1"),
        ("search", {**SEARCH, "hybrid": True}, "the words of reports are not indexed"),
    ):
        answer = tool(served, name, **arguments)
        assert says in answer, name
        assert "\n" not in answer


def test_number_of_a_filter_that_python_has_not_is_compared_all_the_same(served: Served) -> None:
    arguments = json.dumps({**SEARCH, "limit": 3, "filter": {"kind": {"<": "N"}}})
    for number, says in (("1e999", "Infinity"), ("1e9", "chunk")):
        asked = arguments.replace('"N"', number)
        answer = served.client.post(
            "/mcp",
            content='{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name":'
            f' "search", "arguments": {asked}}}}}',
            headers={**HEADERS, "content-type": "application/json"},
        )
        assert says in answer.text


def test_assistant_may_start_it_by_itself(served: Served, shared_conninfo: str) -> None:
    del served
    client = {"name": "test", "version": "1"}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
    typed = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
    ran = pgembed(shared_conninfo, "mcp", "reports", answer=f"{typed}\n")
    assert ran.error is None, ran.error
    answer = json.loads(ran.stdout.splitlines()[0])
    assert answer["result"]["serverInfo"]["name"] == "pgembed"
    assert "no pipeline 'none'" in (pgembed(shared_conninfo, "mcp", "none").error or "")
