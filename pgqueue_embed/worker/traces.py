"""Claims as OpenTelemetry traces, for those who ask for them: a span a claim, its stages in it.

Made when a claim has ended, from what was measured of it anyhow. What is off costs nothing: not
even the library is loaded.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from pgqueue_embed.claim.process import ClaimOutcome
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.errors import UsageError
from pgqueue_embed.log import Forwarding, get_logger, mask
from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable
from pgqueue_embed.version import VERSION

# The standard ones; https://opentelemetry.io/docs/specs/otel/protocol/exporter
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PATH = "/v1/traces"
NOT_INSTALLED = "traces need the extra otlp: install pgqueue-embed[otlp]"

# A collector that does not answer must not keep a worker from leaving.
CLOSE_SECONDS = 3.0
EXPORT_SECONDS = 5

STAGES = ("read", "chunk", "embed", "write")


@dataclass(kw_only=True)
class Traced:
    """A claim that is looked at; `outcome` is what came of it, None for nothing to claim."""

    pipeline: str
    began_ns: int = field(default_factory=time.time_ns)
    outcome: ClaimOutcome | None = None


class Traces(Protocol):
    """Where claims are told."""

    def tell(self, traced: Traced, error: BaseException | None) -> None:
        """Tell of a claim that has ended now, well or with an error."""

    def close(self) -> None:
        """Hand over what was told."""


@contextmanager
def traced(traces: Traces | None, pipeline: str) -> Iterator[Traced]:
    """Tell `traces`, if there are any, of the claim in the block."""
    claim = Traced(pipeline=pipeline)
    try:
        yield claim
    except Exception as error:
        if traces is not None:
            traces.tell(claim, error)
        raise
    if traces is not None and claim.outcome is not None:
        traces.tell(claim, None)


def open_traces(url: str | None) -> Traces | None:
    """Return where claims are told: at `url`, or where the environment says; None for nowhere.

    Raises UsageError where the extra is not installed; where only the environment asks, which may
    be meant for others, that is a warning.
    """
    if url is None and not any(os.environ.get(each) for each in ENDPOINT_VARIABLES):
        return None
    try:
        return OtlpTraces(url)
    except ImportError:
        if url is not None:
            raise UsageError(f"--otlp: {NOT_INSTALLED}") from None
        get_logger().warning("no traces", reason=NOT_INSTALLED)
        return None


class OtlpTraces:
    """Sends spans over OTLP, by HTTP, in a thread of the library's."""

    def __init__(self, url: str | None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # What it has to say, such as that no collector listens, is no news of the worker's.
        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [Forwarding()], False
        described = {
            "service.version": VERSION,
            "host.name": platform.node(),
            "process.pid": os.getpid(),
        }
        if not os.environ.get("OTEL_SERVICE_NAME"):
            described["service.name"] = "pgembed"
        self._provider = TracerProvider(resource=Resource.create(described))
        exporter = OTLPSpanExporter(endpoint=_endpoint(url), timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pgembed", VERSION)

    def tell(self, traced: Traced, error: BaseException | None) -> None:
        """Send a span of a claim with a child for each stage."""
        from opentelemetry import trace

        span = self._tracer.start_span(
            "claim",
            kind=trace.SpanKind.CONSUMER,
            start_time=traced.began_ns,
            attributes={"pgembed.pipeline": traced.pipeline, **_attributes(traced.outcome)},
        )
        if error is not None:
            said = printable(mask(first_line(error)), MOST_CHARACTERS)
            span.set_status(trace.Status(trace.StatusCode.ERROR, said))
            span.set_attribute("error.type", type(error).__name__)
        within = trace.set_span_in_context(span)
        for name, began_ns, ended_ns in _stages(traced):
            child = self._tracer.start_span(name, context=within, start_time=began_ns)
            child.end(ended_ns)
        span.end()

    def close(self) -> None:
        """Send what is left, if that takes no longer than a moment."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def _endpoint(url: str | None) -> str | None:
    """Return where spans go; None for where the environment says."""
    if url is None or urlsplit(url).path.endswith(PATH):
        return url
    return url.rstrip("/") + PATH


def _attributes(outcome: ClaimOutcome | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    if outcome.event is not None:
        return {"pgembed.event": outcome.event}
    commit = outcome.commit
    return {
        "pgembed.records": commit.records,
        "pgembed.failed": commit.failed,
        "pgembed.chunks": commit.chunks,
        "pgembed.tokens": commit.tokens,
        "pgembed.cache_hits": commit.cache_hits,
        "pgembed.reused": commit.reused,
        "pgembed.lock_seconds": commit.lock_seconds,
    }


def _stages(traced: Traced) -> Iterator[tuple[str, int, int]]:
    """Yield each stage with its begin and end: they follow one another, from the claim's begin."""
    if traced.outcome is None or traced.outcome.rate is None:
        return
    at = traced.began_ns
    for name in STAGES:
        seconds: float = getattr(traced.outcome.commit, f"{name}_seconds")
        yield name, at, at + int(seconds * 1e9)
        at += int(seconds * 1e9)
