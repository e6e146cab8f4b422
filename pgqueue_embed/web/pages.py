"""The pages that tell how everything stands, and the streams that keep them so."""

from __future__ import annotations

from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pgqueue_embed.errors import UsageError
from pgqueue_embed.monitoring.details import (
    QUARTER_SECONDS,
    Details,
    read_details,
    read_events,
)
from pgqueue_embed.monitoring.metrics import metrics_text
from pgqueue_embed.monitoring.snapshot import Row
from pgqueue_embed.web.charts import columns, stage_parts
from pgqueue_embed.web.live import Look
from pgqueue_embed.web.site import Site, render
from pgqueue_embed.web.views import overview as view_of

EVENTS_A_PAGE = 100

# What moves on each page, by the name that its stream is asked for.
MOVING = {
    "overview": "_overview.html",
    "pipeline": "_pipeline.html",
    "machines": "_machines.html",
    "events": "_events.html",
}


class Pages:
    """A function for each address, in a thread of its own; `site` is what they share."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def overview(self, request: Request) -> Response:
        """Show all pipelines, who works on them, and what happened."""
        return self._moving_page(request, "overview")

    def machines(self, request: Request) -> Response:
        """Show all workers."""
        return self._moving_page(request, "machines")

    def events(self, request: Request) -> Response:
        """Show what happened, the newest first, or what was before a time."""
        before = _time(request.query_params.get("before"))
        name = request.query_params.get("pipeline") or None
        look = self._site.live.look()
        values = {
            **moving_values(self._site, look, None),
            "chosen": name,
            "before": before,
            "pipelines": [each.name for each in look.snapshot.pipelines],
        }
        if name is not None or before is not None:
            with self._site.connect() as connection:
                rows = read_events(connection, name, before=before, limit=EVENTS_A_PAGE)
            values |= {"rows": rows, "moves": False}
        return self._site.page(request, "events.html", values)

    def pipeline(self, request: Request) -> Response:
        """Show one pipeline: its next generation, a day of it, its settings and indexes."""
        name = request.query_params.get("name", "")
        look = self._site.live.look()
        with self._site.connect() as connection:
            details = read_details(connection, name)
        values = {
            **moving_values(self._site, look, name),
            "details": details,
            "day": columns(
                details.records,
                ends_at=look.snapshot.now,
                step=timedelta(seconds=QUARTER_SECONDS),
                noun="record",
            ),
            "stages": stage_parts(details.stages),
            "settings": settings_shown(details),
        }
        return self._site.page(request, "pipeline.html", values)

    async def live(self, request: Request) -> Response:
        """Send what moves on a page, whenever it has."""
        page = request.query_params.get("page", "")
        name = request.query_params.get("name") or None
        if page not in MOVING:
            raise UsageError("there is no such stream")
        site = self._site

        def rendered(look: Look) -> str:
            return render(MOVING[page], moving_values(site, look, name))

        return StreamingResponse(
            site.live.stream((page, name), rendered),
            media_type="text/event-stream",
            headers={"x-accel-buffering": "no"},
        )

    def metrics(self, request: Request) -> Response:
        """Give Prometheus what `pgembed metrics` prints."""
        del request
        text = metrics_text(self._site.live.look().snapshot)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _moving_page(self, request: Request, page: str) -> Response:
        values = moving_values(self._site, self._site.live.look(), None)
        return self._site.page(request, f"{page}.html", values)


def moving_values(site: Site, look: Look, name: str | None) -> dict[str, object]:
    """Return what the templates of what moves are rendered with."""
    view = view_of(look.snapshot, name)
    return {
        "site": site,
        "view": view,
        "rows": view.events,
        "moves": True,
        "now": view.now,
        "name": name,
        "trouble": look.trouble,
        "is_empty": not look.snapshot.pipelines,
        "is_gone": name is not None and not view.busy,
    }


LABELS = {
    "model": "Model",
    "model_revision": "Revision",
    "model_fingerprint": "SHA-256 of its files",
    "dimensions": "Dimensions",
    "vector_type": "Type of vectors",
    "document_prompt": "Prompt of documents",
    "query_prompt": "Prompt of queries",
    "template": "Template",
    "chunk_template": "Template of chunks",
    "where_condition": "Only where",
    "chunking": "Chunking",
    "chunk_tokens": "Tokens a chunk",
    "overlap_tokens": "Tokens in common",
    "max_attempts": "Attempts a record",
    "priority": "Priority",
    "index_method": "Index that is wanted",
    "generation": "Generation",
    "created_at": "Made",
}


def settings_shown(details: Details) -> list[tuple[str, list[str]]]:
    """Return the settings by their labels, of the pipeline and of its next generation."""
    rows = details.settings
    told: list[tuple[str, list[str]]] = [
        ("Source", [f"{each['source_schema']}.{each['source_table']}" for each in rows]),
        ("Key", [", ".join(each["key_columns"]) for each in rows]),
        ("Text", [", ".join(each["text_fields"]) for each in rows]),
        ("Vectors", [_target(each) for each in rows]),
    ]
    told += [
        (label, [_value(column, each[column]) for each in rows]) for column, label in LABELS.items()
    ]
    return [(label, values) for label, values in told if any(values)]


def _target(row: Row) -> str:
    column = f", column {row['into_column']}" if row["into_column"] else ""
    return f"{row['target_schema']}.{row['target_table']}{column}"


def _value(column: str, value: object) -> str:
    if column == "model_fingerprint":
        return f"{str(value)[:16]}…"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M}"
    return "" if value is None else str(value)


def _time(text: str | None) -> datetime | None:
    """Raises UsageError for a text that is no time."""
    try:
        return None if not text else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("that is no time") from None
