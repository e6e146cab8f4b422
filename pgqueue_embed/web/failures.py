"""The pages of dead letters: by their errors, each with its record's text on request."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pgqueue_embed.monitoring.snapshot import Row
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.dead_letters import read_failures, read_groups
from pgqueue_embed.source.passages import Passage, WantedPassage, read_passages
from pgqueue_embed.web.site import Site

MOST_GROUPS = 50
LETTERS = 20

# Of a text, so much is shown at once.
DOCUMENT_CHARACTERS = 20_000


class Failures:
    """A function for each address."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def groups(self, request: Request) -> Response:
        """Show the dead letters of a pipeline, or of all, by what their errors have in common."""
        chosen = request.query_params.get("pipeline") or None
        look = self._site.live.look()
        dead = [each for each in look.snapshot.pipelines if each.row["dead"]]
        rows = list(look.snapshot.failures)
        if chosen is not None:
            with self._site.connect() as connection:
                rows = read_groups(connection, chosen, limit=MOST_GROUPS)
        values = {
            "chosen": chosen,
            "dead": [each for each in dead if chosen in (None, each.name)],
            "choices": dict.fromkeys([*(each.name for each in dead), *filter(None, [chosen])]),
            "groups": rows,
            "unshown": _unshown([each.row for each in dead], rows, chosen),
            "now": look.snapshot.now,
            "trouble": look.trouble,
        }
        return self._site.page(request, "failures.html", values)

    def letters(self, request: Request) -> Response:
        """Show the newest dead letters of one kind of error."""
        name = request.query_params.get("pipeline", "")
        kind = request.query_params.get("kind")
        with self._site.connect() as connection:
            rows = read_failures(connection, name, limit=LETTERS, kind=kind)
        values = {"name": name, "kind": kind, "letters": rows, "most": LETTERS}
        return self._site.page(request, "letters.html", values)

    def document(self, request: Request) -> Response:
        """Show the text of a record, from a character on, with a chunk of it marked."""
        given = request.query_params
        name, key = given.get("pipeline", ""), given.get("key", "")
        marked = (_number(given.get("mark_start")), _number(given.get("mark_end")))
        start = _number(given.get("start"), max(marked[0] - DOCUMENT_CHARACTERS // 4, 0))
        wanted = WantedPassage(key=key, start=start, characters=DOCUMENT_CHARACTERS)
        with self._site.connect() as connection:
            pipeline = load_pipeline(connection, name)
            (passage,) = read_passages(connection, pipeline, [wanted])
        values = {
            "name": name,
            "key": key,
            "passage": passage,
            "parts": None if passage is None else marked_parts(passage, *marked),
            "marked": marked,
            "step": DOCUMENT_CHARACTERS,
        }
        return self._site.page(request, "document.html", values)


def marked_parts(passage: Passage, start: int, end: int) -> tuple[str, str, str]:
    """Return a passage as what is before, in and behind the characters `start` to `end`."""
    first = min(max(start - passage.start, 0), len(passage.text))
    last = min(max(end - passage.start, first), len(passage.text))
    return passage.text[:first], passage.text[first:last], passage.text[last:]


def _unshown(rows: list[Row], groups: list[Row], chosen: str | None) -> int:
    letters = sum(int(row["dead"]) for row in rows if chosen in (None, row["pipeline"]))
    return max(letters - sum(int(group["failures"]) for group in groups), 0)


# Characters of a document, as PostgreSQL counts them.
MOST_NUMBER = 1 << 30


def _number(text: str | None, usual: int = 0) -> int:
    """Return what is given as a number, or `usual` for what is none."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 10:
        return usual
    return min(int(text), MOST_NUMBER)
