"""The page that searches: chunks nearest in meaning, each shown in its document."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from starlette.requests import Request
from starlette.responses import Response

from pgqueue_embed.db.errors import refused
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.names import split_columns
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PgembedError, PipelineFault, PipelineReplaced, UsageError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.passages import Passage, WantedPassage, read_passages
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.query import has_vectors, search
from pgqueue_embed.vector_search.query_vector import encoder_of
from pgqueue_embed.vector_search.request import LEAST_COSINE, SearchRequest, no_vectors
from pgqueue_embed.web.failures import marked_parts
from pgqueue_embed.web.rights import lacking_to_search
from pgqueue_embed.web.site import Site

HITS = 10
MOST_HITS = 100

# What is shown of a document on both sides of a chunk, and of a chunk at most.
AROUND_CHARACTERS = 240
MOST_CHUNK = 4_000

# Searches compute and hold a connection: others wait their turn.
AT_ONCE = 4
TURN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class SearchForm:
    """What a person has asked for, as it was typed."""

    pipeline: str
    query: str
    where: str
    columns: str
    per_record: bool
    hybrid: bool
    limit: str
    threshold: str
    offset: int

    @classmethod
    def of(cls, given: Mapping[str, str], usual: str) -> SearchForm:
        """Return what an address asks for, of pipeline `usual` if it names none."""
        offset = given.get("offset", "")
        return cls(
            pipeline=given.get("pipeline") or usual,
            query=given.get("q", ""),
            where=given.get("where", "").strip(),
            columns=given.get("columns", "").strip(),
            per_record=given.get("per_record") == "1",
            hybrid=given.get("hybrid") == "1",
            limit=given.get("limit") or str(HITS),
            threshold=given.get("threshold", "").strip(),
            offset=int(offset) if offset.isascii() and offset.isdigit() and len(offset) < 7 else 0,
        )

    @property
    def has_filters(self) -> bool:
        """Whether more was asked for than words."""
        usual = (self.limit, self.threshold) == (str(HITS), "")
        given = self.where or self.columns or self.per_record or self.hybrid
        return bool(given or not usual)

    def request(self) -> SearchRequest:
        """Return it as a search; raises UsageError for what is none."""
        is_number = self.limit.isascii() and self.limit.isdigit() and len(self.limit) < 7
        limit = int(self.limit) if is_number else 0
        if not 1 <= limit <= MOST_HITS:
            raise UsageError(f"show 1 to {MOST_HITS} hits on a page")
        return SearchRequest(
            limit=limit,
            offset=self.offset,
            threshold=(_number("--threshold", self.threshold) if self.threshold else LEAST_COSINE),
            where=self.where or None,
            columns=tuple(split_columns(self.columns)) if self.columns else (),
            per_record=self.per_record,
            words=self.query if self.hybrid else None,
        )

    def values(self, offset: int) -> dict[str, object]:
        """Return what the address of another page of it has."""
        return {
            "pipeline": self.pipeline,
            "q": self.query,
            "where": self.where,
            "columns": self.columns,
            "per_record": "1" if self.per_record else None,
            "hybrid": "1" if self.hybrid else None,
            "limit": None if self.limit == str(HITS) else self.limit,
            "threshold": self.threshold or None,
            "offset": offset or None,
        }


@dataclass(frozen=True, kw_only=True)
class ShownHit:
    """A hit, with what is before, in and behind the chunk; `is_current` if that is the text now."""

    hit: Hit
    before: str
    chunk: str
    behind: str
    is_current: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found; `note` says what is missing, `has_more` whether another page follows."""

    found: Sequence[ShownHit] = ()
    note: str | None = None
    has_more: bool = False
    error: str | None = None
    grants: Sequence[str] = ()


class Searching:
    """The function of the page's address."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def page(self, request: Request) -> Response:
        """Show the form, and below it what was found."""
        look = self._site.live.look()
        names = [each.name for each in look.snapshot.pipelines]
        with_vectors = [each.name for each in look.snapshot.pipelines if each.row["done"]]
        asked = SearchForm.of(request.query_params, next(iter([*with_vectors, *names]), ""))
        answer = self._answered(asked) if asked.query.strip() else None
        values: dict[str, Any] = {
            "asked": asked,
            "answer": answer,
            "lacking": self._grants(asked.pipeline) if answer is None else [],
            "pipelines": names,
            "trouble": look.trouble,
        }
        return self._site.page(request, "search.html", values)

    def _answered(self, asked: SearchForm) -> Answer:
        if not self._turns.acquire(timeout=TURN_SECONDS):
            return Answer(error="other searches take their time; try again in a while")
        try:
            with self._site.connect() as connection:
                return self._search(connection, asked)
        except PgembedError as error:
            return Answer(error=str(error), grants=self._grants(asked.pipeline))
        except psycopg.Error as error:
            return Answer(error=refused(error), grants=self._grants(asked.pipeline))
        finally:
            self._turns.release()

    def _grants(self, name: str) -> list[str]:
        with suppress(PgembedError, psycopg.Error), self._site.connect() as connection:
            return lacking_to_search(connection, name)
        return []

    def _search(self, connection: Connection, asked: SearchForm) -> Answer:
        request = asked.request()
        request.check()
        check_schema(connection)
        while True:
            pipeline = load_pipeline(connection, asked.pipeline)
            if not has_vectors(connection, pipeline):
                return Answer(note=no_vectors(pipeline.name))
            encoder = encoder_of(pipeline)
            vector = encoder.encode(asked.query, pipeline.spec.truncate_dim)
            with suppress(PipelineReplaced):
                hits = search(connection, pipeline, vector, request)
                return self._shown(connection, pipeline, hits, request)

    def _shown(
        self,
        connection: Connection,
        pipeline: Pipeline,
        hits: Sequence[Hit],
        request: SearchRequest,
    ) -> Answer:
        passages: Sequence[Passage | None] = [None] * len(hits)
        grants: list[str] = []
        note = None
        try:
            passages = read_passages(connection, pipeline, [_around(hit) for hit in hits])
        except PipelineFault as error:
            note = f"chunks are shown without their documents: {error}"
            grants = lacking_to_search(connection, pipeline.name)
        if not hits:
            reaches_none = request.threshold > LEAST_COSINE
            note = "nothing reaches the threshold" if reaches_none else "nothing was found"
        return Answer(
            found=[_found(hit, passage) for hit, passage in zip(hits, passages, strict=True)],
            note=note,
            has_more=len(hits) == request.limit,
            grants=grants,
        )


def _around(hit: Hit) -> WantedPassage:
    start = max((hit.start_char or 0) - AROUND_CHARACTERS, 0)
    end = min(hit.end_char or 0, (hit.start_char or 0) + MOST_CHUNK)
    return WantedPassage(key=hit.key_text, start=start, characters=end + AROUND_CHARACTERS - start)


def _found(hit: Hit, passage: Passage | None) -> ShownHit:
    chunk = (hit.chunk or "")[:MOST_CHUNK]
    if passage is not None and hit.start_char is not None and hit.end_char is not None:
        end = min(hit.end_char, hit.start_char + MOST_CHUNK)
        before, inside, behind = marked_parts(passage, hit.start_char, end)
        if inside == chunk:
            return ShownHit(hit=hit, before=before, chunk=inside, behind=behind, is_current=True)
    is_current = passage is None and hit.chunk is not None
    return ShownHit(hit=hit, before="", chunk=chunk, behind="", is_current=is_current)


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{what} {text}: give a number") from None
