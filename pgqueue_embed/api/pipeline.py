"""A pipeline as an object: queue its records, watch it, pause it, drop it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.api.arguments import given_options
from pgqueue_embed.api.explained import explained, opened
from pgqueue_embed.db import applications
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import read_on
from pgqueue_embed.lifecycle import drop
from pgqueue_embed.lifecycle.alter import Changes, abort, catch_up
from pgqueue_embed.lifecycle.alter import alter as begin
from pgqueue_embed.lifecycle.follow_source import follow_source
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import queue_missed, start_capture, stop_capture
from pgqueue_embed.monitoring.progress import Progress
from pgqueue_embed.monitoring.snapshot import read_progress
from pgqueue_embed.pipeline import catalog
from pgqueue_embed.pipeline.key_values import RecordKey, key_texts
from pgqueue_embed.pipeline.options import ALTERABLE, VerifyOptions
from pgqueue_embed.pipeline.pipeline import Pipeline as Settings
from pgqueue_embed.queue import dead_letters, enqueue
from pgqueue_embed.vector_search.asked import pipeline_read
from pgqueue_embed.vector_search.query_vector import encoder_of
from pgqueue_embed.vector_search.sessions import Sessions
from pgqueue_embed.verification import Verification, put_back, verify


class Pipeline:
    """A pipeline of a database; made by `Database.create` or `Database.pipeline`.

    Every method opens a connection of its own, but for searches, which keep theirs, and raises
    PgembedError with one line for a person: what is wrong, and the way out.

    Example::

        reports = database.pipeline("reports")
        reports.enqueue(where="event_type = 'D'")
        print(reports.progress().pending)
    """

    def __init__(self, conninfo: str, name: str, sessions: Sessions | None = None) -> None:
        self._conninfo = conninfo
        self.name = name
        self.sessions = sessions or sessions_of(conninfo)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r})"

    @explained()
    def settings(self) -> Settings:
        """Return how the pipeline is set up: its tables, columns, model and chunks.

        Example::

            print(reports.settings().target)  # public.event_text_vectors
        """
        with self._opened() as (_, settings):
            return settings

    @explained()
    def enqueue(
        self,
        *,
        where: str | None = None,
        limit: int | None = None,
        everything: bool = False,
        allow_deletes: bool = False,
    ) -> int:
        """Queue the records that are new, changed or gone from the source; returns how many.

        `where` is an SQL condition over the source, `limit` the most records to queue;
        `everything` queues those that are embedded already too. `allow_deletes` says that what is
        not in the source has been deleted: without it, more than a tenth and 1,000 records gone,
        unannounced, pause the pipeline and raise PipelineFault.

        Example::

            reports.enqueue(where="event_date >= '2026-01-01'")
        """
        selection = enqueue.Selection(where=where, limit=limit, everything=everything)
        with self._opened() as (connection, settings):
            return enqueue.enqueue(connection, settings, selection, allow_deletes=allow_deletes)

    @explained()
    def sync(self, *, on: bool = True) -> int:
        """Capture changes of the source by triggers from now on, or no longer.

        Returns how many records were queued that had changed while nothing captured it. Takes the
        owner of the source; see docs/keeping-in-sync.md.

        Example::

            reports.sync()
        """
        with self._opened() as (connection, settings):
            if not on:
                stop_capture(connection, settings)
                return 0
            return queue_missed(connection, settings) if start_capture(connection, settings) else 0

    @explained()
    def progress(self) -> Progress:
        """Return how far the pipeline is, and how fast it goes.

        Example::

            while reports.progress().pending:
                time.sleep(1)
        """
        with self._opened() as (connection, settings):
            return read_progress(connection, settings.name)

    @explained()
    def encode(self, query: str) -> NDArray[np.float32]:
        """Return the unit vector of `query`, shape (dimensions,), by the pipeline's own model.

        For queries of your own; the model is loaded once a process, on the CPU.

        Example::

            session.scalars(select(Chunk).order_by(Chunk.embedding.cosine_distance(
                reports.encode("battery overheated"))).limit(5))
        """
        settings = self.settings()
        return encoder_of(settings).encode(query, settings.spec.truncate_dim)

    @explained()
    def warm_up(self) -> None:
        """Load the pipeline's model, encode by it once and open a session, before a user waits.

        Searches of this object, and of all in the process by the same model, begin warm then.
        Raises what a search would: ModelError, DatabaseUnavailable, NotFound.

        Example::

            reports.warm_up()
        """
        settings = self.sessions.run(
            lambda connection: read_on(
                connection, pipeline_read(connection, self.name, self.sessions.known)
            )
        )
        encoder_of(settings).encode("warm up")

    @explained()
    def verify(
        self,
        *,
        sample: int = VerifyOptions.sample,
        min_cosine: float = VerifyOptions.min_cosine,
        requeue: bool = False,
    ) -> Verification:
        """Embed up to `sample` stored chunks again, in fp32, and return how they compare.

        They are drawn at random, and agree from a cosine of `min_cosine` on; see ``pgembed
        verify``. With `requeue`, the records of what differs are queued to be embedded again;
        otherwise nothing is changed. Raises ModelError for a model that is not to be had.

        Example::

            found = reports.verify(sample=1000)
            print(found.agreeing_share, found.interval, len(found.differing))
        """
        options = VerifyOptions(sample=sample, min_cosine=min_cosine)
        with self._opened() as (connection, settings):
            found = verify(connection, settings, options)
            if requeue:
                put_back(connection, settings, found)
            return found

    @explained()
    def retry(self, keys: RecordKey | Sequence[RecordKey] | None = None) -> int:
        """Queue dead letters again, those of `keys` or, without any given, all; returns how many.

        A key is in its own type, of several columns a tuple, or as in `pgembed.dead_letters`. An
        empty list is none of them.

        Example::

            reports.retry(["4711"])
        """
        with self._opened() as (connection, settings):
            return dead_letters.retry(connection, settings, key_texts(settings.key, keys))

    @explained()
    def alter(
        self,
        *,
        name: str | None = None,
        priority: int | None = None,
        view: bool | None = None,
        max_attempts: int | None = None,
        index: str | None = None,
        quantize: str | None = None,
        lexical: bool | None = None,
        model: str | None = None,
        text_field: str | Sequence[str] | None = None,
        template: str | None = None,
        chunk_template: str | None = None,
        where: str | None = None,
        chunking: str | None = None,
        chunk_size: int | None = None,
        overlap_tokens: int | None = None,
        vector_type: str | None = None,
        truncate_dim: int | None = None,
        text: bool | None = None,
        ids: bool | None = None,
        copy_columns: str | Sequence[str] | None = None,
        foreign_key: bool | None = None,
        partition_by: str | None = None,
        trust_owners: bool | None = None,
        document_prompt: str | None = None,
        query_prompt: str | None = None,
        control_tokens: bool | None = None,
        pooling: str | None = None,
    ) -> Pipeline | None:
        """Change options: at once what leaves the vectors alone, others by a new generation.

        The arguments are the options of ``pgembed alter``, and `name` its ``--rename``. Returns the
        new generation, with its records queued, or None where none is needed; searches use the old
        vectors until `switch`; see docs/changing-pipelines.md. What is None stays as it is; an
        empty `index`, `chunk_template`, `where`, `partition_by`, prompt or `pooling`, or a
        `truncate_dim` of 0, takes one away. Raises UsageError for a value that cannot be.

        Example::

            reports.alter(chunk_size=200, overlap_tokens=32)
        """
        given = given_options(locals())
        changes = Changes(name=name, **{ALTERABLE[each].field: given[each] for each in given})
        with self._opened() as (connection, settings):
            successor = begin(connection, settings, changes)
            self.name = name or self.name
            if successor is None:
                return None
            catch_up(connection, settings, successor)
            return Pipeline(self._conninfo, successor.name, self.sessions)

    @explained()
    def follow_source(self) -> list[str]:
        """Note the names and types that the source has now, and return what changed, in words.

        Workers compare all of the source with what is embedded then. Raises UsageError for types
        that no pipeline can follow, and where nothing tells a name of now.

        Example::

            reports.follow_source()
        """
        with self._opened() as (connection, settings):
            return [str(change) for change in follow_source(connection, settings)]

    @explained()
    def switch(self, *, force: bool = False, patience_seconds: float = 0.0) -> None:
        """Put the next generation in place of this one, in one transaction.

        Raises UsageError if it has records to embed after `patience_seconds` still, or when more of
        its records failed than of the old one's (not with `force`).

        Example::

            reports.switch()
        """
        with self._opened() as (connection, settings):
            switch(connection, settings, force=force, patience_seconds=patience_seconds)

    @explained()
    def abort(self) -> None:
        """Give the next generation up and leave nothing of it.

        Example::

            reports.abort()
        """
        with self._opened() as (connection, settings):
            abort(connection, settings)

    @explained()
    def pause(self, reason: str = "paused by a program") -> None:
        """Stop workers from claiming; what they hold is finished.

        Example::

            reports.pause("the nightly load runs")
        """
        with self._opened() as (connection, settings):
            catalog.pause_pipeline(connection, settings, reason)

    @explained()
    def resume(self) -> None:
        """Let workers claim again.

        Example::

            reports.resume()
        """
        with self._opened() as (connection, settings):
            catalog.resume_pipeline(connection, settings)

    @explained()
    def drop(self, *, delete_vectors: bool = False) -> None:
        """Remove the pipeline with its queue and ledger, and its target table only if asked.

        Example::

            reports.drop(delete_vectors=True)
        """
        with self._opened() as (connection, settings):
            drop.drop_pipeline(connection, settings, delete_vectors=delete_vectors)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Connection, Settings]]:
        with opened(self._conninfo) as connection:
            yield connection, catalog.load_pipeline(connection, self.name)


def sessions_of(conninfo: str) -> Sessions:
    """Return where the sessions of searches in a database are kept; opens none yet."""
    return Sessions(conninfo, application_name=applications.COMMAND)
