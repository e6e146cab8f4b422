"""The model that a worker process loads, and the pipelines that it can serve with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, Connection, connect
from pgqueue_embed.embedding import (
    EmbeddingModel,
    Memory,
    ModelUse,
    ResolvedModel,
    keep_heap,
)
from pgqueue_embed.errors import PgembedError, SetupError
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.catalog import why_paused
from pgqueue_embed.pipeline.generations import with_successors
from pgqueue_embed.pipeline.model import check_local_model, make_chunker, use_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.source_comparison import notice_changed_sources
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.unserved import MODEL_RECHECK_SECONDS, Unserved

REFRESH_SECONDS = 3.0

# How soon a source that has become another one, which no trigger tells of, is compared.
NOTICE_SECONDS = 15.0

# A pipeline with another model waits at most this long while the first one stays busy.
MODEL_TURN_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """The model that this process loads, found on this machine and equal to the pipelines'.

    `key` is that of all pipelines which it serves.
    """

    resolved: ResolvedModel
    use: ModelUse
    key: str
    device: str
    precision: str

    def load(self) -> EmbeddingModel:
        """Load the model as this machine computes it best; to be called on the device thread."""
        keep_heap()
        model = EmbeddingModel.load(
            self.resolved,
            device=self.device,
            precision=self.precision,
            use=self.use,
            memory=Memory(),
        )
        model.sample_batches()
        get_logger().info(
            "model loaded", model=model.name, device=model.device, computes=str(model.choice)
        )
        return model


def choose_model(connection: Connection, settings: WorkerSettings) -> ChosenModel:
    """Return the model to load: that of the pipeline whose work has waited longest.

    Raises SetupError when there is no pipeline, and ModelMismatch or ModelError when none of the
    pipelines' models is on this machine.
    """
    pipelines = with_successors(connection, settings.pipelines)
    if not pipelines:
        raise SetupError("there is no pipeline yet; make one: pgembed create NAME --source-table …")
    failure: PgembedError | None = None
    for pipeline in by_waiting(connection, pipelines, settings):
        try:
            resolved = check_local_model(pipeline, settings.model_path)
        except PgembedError as error:
            get_logger().error("pipeline skipped", pipeline=pipeline.name, reason=str(error))
            failure = failure or error
            continue
        return ChosenModel(
            resolved=resolved,
            use=use_of(pipeline.spec),
            key=pipeline.model_key,
            device=settings.device,
            precision=settings.precision,
        )
    raise failure or SetupError("no pipeline can be worked on")


def by_waiting(
    connection: Connection, pipelines: Sequence[Pipeline], settings: WorkerSettings
) -> list[Pipeline]:
    """Order by the age of the work that waits.

    Behind comes the model that had its turn last, and last what could not be served.
    """
    waiting = first_waiting(connection, pipelines)
    unserved = dict(settings.unserved)

    def rank(pipeline: Pipeline) -> tuple[bool, bool, bool, int]:
        had_its_turn = pipeline.model_key == settings.last_model
        first = waiting.get(pipeline.id, 0)
        return pipeline.id not in waiting, pipeline.id in unserved, had_its_turn, first

    return sorted(pipelines, key=rank)


def first_waiting(connection: Connection, pipelines: Sequence[Pipeline]) -> dict[int, int]:
    """Return the lowest id of claimable work by pipeline, for those that have any."""
    rows = connection.execute(
        """
        select work.pipeline_id, min(work.id)
        from pgembed.work
        join pgembed.pipelines on pipelines.id = work.pipeline_id
        where work.pipeline_id = any(%s)
            and pipelines.state = 'active'
            and work.available_at <= clock_timestamp()
        group by work.pipeline_id
        """,
        ([pipeline.id for pipeline in pipelines],),
    )
    return dict(rows.fetchall())


class ServedPipelines:
    """The pipelines of the loaded model, looked up anew every few seconds, and their chunkers.

    `unserved` are those that this process leaves to others: for its model, or for its role.
    """

    def __init__(
        self,
        conninfo: str,
        settings: WorkerSettings,
        chosen: ChosenModel,
        model: EmbeddingModel,
    ) -> None:
        self._conninfo = conninfo
        self._settings = settings
        self._chosen = chosen
        self._model = model
        self.unserved = Unserved(settings.unserved)
        self._lock = threading.Lock()
        self._pipelines: list[Pipeline] = []
        self._others: list[Pipeline] = []
        self._refreshed_at = -REFRESH_SECONDS
        self._noticed_at = -NOTICE_SECONDS
        self._started_at = time.monotonic()
        self._chunkers: dict[tuple[int, int, bool], Chunker] = {}

    def pipelines(self) -> list[Pipeline]:
        """Return the pipelines to work on now; MigrationError once the schema was migrated."""
        with self._lock:
            if time.monotonic() - self._refreshed_at >= REFRESH_SECONDS:
                self._refresh()
            return self._pipelines

    def other_model_waits(self, idle: bool) -> bool:
        """Return whether work for another model waits and this one has had its turn.

        Work for a model that this machine lacks does not count.
        """
        others = [each for each in self._others if not self.unserved.holds(each.id)]
        if not others or not (idle or self._turn_is_over()):
            return False
        with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
            waiting = first_waiting(connection, others)
        return any(self._is_here(each) for each in others if each.id in waiting)

    def chunker(self, pipeline: Pipeline) -> Chunker:
        """Return the chunker with the budget of `pipeline`."""
        cutting = (
            pipeline.spec.chunk_tokens,
            pipeline.spec.overlap_tokens,
            pipeline.spec.chunking == "none",
        )
        with self._lock:
            if cutting not in self._chunkers:
                self._chunkers[cutting] = make_chunker(self._model, pipeline)
            return self._chunkers[cutting]

    def left_undone(self) -> dict[str, str]:
        """Return why work waits though this worker has nothing left to do, by pipeline."""
        with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
            pipelines = with_successors(connection, self._settings.pipelines)
            return left_undone(connection, pipelines, self.unserved.reasons())

    def _is_here(self, pipeline: Pipeline) -> bool:
        """Return whether this machine has the model of `pipeline`, and remember it if not."""
        try:
            check_local_model(pipeline, self._settings.model_path)
        except PgembedError as error:
            get_logger().error("pipeline left to others", pipeline=pipeline.name, reason=str(error))
            self.unserved.add(pipeline.id, str(error), seconds=MODEL_RECHECK_SECONDS)
            return False
        self.unserved.remove(pipeline.id)
        return True

    def _turn_is_over(self) -> bool:
        return time.monotonic() - self._started_at >= MODEL_TURN_SECONDS

    def _refresh(self) -> None:
        with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
            check_schema(connection)
            self._notice(connection)
            pipelines = with_successors(connection, self._settings.pipelines)
        key = self._chosen.key
        self._pipelines = [each for each in pipelines if each.model_key == key]
        self._others = [each for each in pipelines if each.model_key != key]
        self._refreshed_at = time.monotonic()

    def _notice(self, connection: Connection) -> None:
        if time.monotonic() - self._noticed_at >= NOTICE_SECONDS:
            notice_changed_sources(connection)
            self._noticed_at = time.monotonic()


PENDING = """
select
    pipelines.id,
    pipelines.state = 'paused',
    state_reason,
    sum(greatest(work.records, 1))::bigint
from pgembed.pipelines
join pgembed.work on work.pipeline_id = pipelines.id
where pipelines.id = any(%s)
group by pipelines.id
"""


def left_undone(
    connection: Connection, pipelines: Sequence[Pipeline], unserved: Mapping[int, str]
) -> dict[str, str]:
    """Return the reason, by name, of each pipeline that is paused or `unserved`, with work."""
    ids = [pipeline.id for pipeline in pipelines]
    left = {}
    names = {pipeline.id: pipeline.name for pipeline in pipelines}
    for id_, is_paused, reason, pending in connection.execute(PENDING, (ids,)):
        if is_paused:
            why = why_paused(names[id_], reason)
            left[id_] = f"is paused with {_records(pending)} waiting: {why}"
        elif id_ in unserved:
            left[id_] = f"has {_records(pending)} that this worker cannot serve: {unserved[id_]}"
    return {names[id_]: left[id_] for id_ in names if id_ in left}


def _records(number: int) -> str:
    return f"{number:,} record{'' if number == 1 else 's'}"
