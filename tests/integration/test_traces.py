"""Traces of claims: what a collector is sent, what they must not cost, what is said without."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.worker import traces
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.traces import open_traces, traced
from tests.support.corpus import texts
from tests.support.fakes import POISON
from tests.support.light import light_settings
from tests.support.light_worker import prepare
from tests.support.pipelines import queue_documents
from tests.support.rows import one_value

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otlp is not there")

SECRET = "hunter2"


class Collector(ThreadingHTTPServer):
    """Takes in what an exporter posts."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), Receiver)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Any]:
        """Return the spans that were sent, each with the attributes of its resource."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        found = []
        for path, body in self.posted:
            assert path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (name,) = [
                    each.value.string_value
                    for each in resource.resource.attributes
                    if each.key == "service.name"
                ]
                assert name == "pgembed"
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@pytest.fixture
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the light model into this process, for this test."""
    from pgqueue_embed.worker import heartbeat, worker

    changed = ((worker, "choose_model"), (heartbeat, "HEARTBEAT_SECONDS"))
    for module, name in (*changed, (heartbeat, "device_memory_bytes")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to be restored
    prepare()


@pytest.mark.usefixtures("_light")
def test_each_claim_is_a_span_with_its_stages_and_no_text_of_anybody(
    conninfo: str, connection: Connection
) -> None:
    from pgqueue_embed.worker.worker import Worker

    documents = [*texts(4), f"{POISON} {SECRET}"]
    queue_documents(connection, documents, max_attempts=1)
    with collector() as server:
        Worker(conninfo, light_settings(otlp=server.url)).run()
        spans = server.spans()
    claims = [span for span in spans if span.name == "claim"]
    assert sum(attributes(span)["pgembed.records"] for span in claims) == len(documents)
    assert sum(attributes(span)["pgembed.failed"] for span in claims) == 1
    for claim in claims:
        assert attributes(claim)["pgembed.pipeline"] == "reports"
        stages = [span for span in spans if span.parent_span_id == claim.span_id]
        assert [stage.name for stage in stages] == ["read", "chunk", "embed", "write"]
        moments = [claim.start_time_unix_nano]
        for stage in stages:
            assert stage.trace_id == claim.trace_id
            assert moments[-1] == stage.start_time_unix_nano <= stage.end_time_unix_nano
            moments.append(stage.end_time_unix_nano)
        assert moments[-1] <= claim.end_time_unix_nano
    assert not any(SECRET.encode() in body for _, body in server.posted)
    assert one_value(connection, "select count(*) from pgembed.batches") == len(claims)


def test_claim_that_fails_is_a_span_with_its_error() -> None:
    with collector() as server:
        opened = open_traces(f"{server.url}/v1/traces")
        assert opened is not None
        with pytest.raises(OSError, match="cut"), traced(opened, "reports"):
            raise OSError(f"the line postgresql://me:{SECRET}@db was cut")
        with traced(opened, "reports"):
            pass  # there was nothing to claim
        opened.close()
        (span,) = server.spans()
    assert span.status.message == "the line postgresql://me:***@db was cut"
    assert attributes(span)["error.type"] == "OSError"


def test_collector_that_is_away_keeps_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "CLOSE_SECONDS", 0.2)
    opened = open_traces("http://127.0.0.1:9")
    assert opened is not None
    with pytest.raises(ValueError, match="odd"), traced(opened, "reports"):
        raise ValueError("odd")
    opened.close()


def test_environment_turns_traces_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_traces(None) is None
    with collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        opened = open_traces(None)
        assert opened is not None
        with pytest.raises(ValueError, match="odd"), traced(opened, "reports"):
            raise ValueError("odd")
        opened.close()
        assert len(server.spans()) == 1


@pytest.mark.parametrize("url", ["localhost:4318", "file:///tmp/x", "http://", "http://[", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="such as http://localhost:4318"):
        WorkerSettings(otlp=url)


def test_without_the_extra_it_is_said_where_it_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"install pgqueue-embed\[otlp\]"):
        open_traces("http://localhost:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert open_traces(None) is None


def test_nothing_is_loaded_for_what_is_off() -> None:
    """All that a worker imports, and a claim that is told to nobody."""
    assert WorkerSettings().otlp is None
    program = (
        "import sys\n"
        "from pgqueue_embed.worker import worker, traces\n"
        "with traces.traced(traces.open_traces(None), 'reports'): pass\n"
        "print(sum(each.startswith(('opentelemetry', 'google.protobuf')) for each in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "0"
