"""One worker process: a model on its device thread, loops that feed it, and a heartbeat."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

import psycopg

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, connect
from pgqueue_embed.embedding import DeviceThread, EmbeddingModel
from pgqueue_embed.errors import PgembedError, SetupError
from pgqueue_embed.log import get_logger
from pgqueue_embed.target.unusable_indexes import CLEAN_UP_SECONDS
from pgqueue_embed.worker import registry
from pgqueue_embed.worker.heartbeat import Heartbeat
from pgqueue_embed.worker.index_builds import IndexBuilds
from pgqueue_embed.worker.loop import Shared, run_loop
from pgqueue_embed.worker.models import ServedPipelines, choose_model
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.shutdown import Shutdown
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, DRAINED, FAILED, STOPPED
from pgqueue_embed.worker.traces import Traces, open_traces

# How soon loops that must leave at once are woken from what they wait for.
JOIN_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """Why a worker process ended, and the key of the model that it worked with.

    `settled` is how many records it has settled. `left` has the reason, by name, of each pipeline
    whose work a drained worker has left undone, `unserved`, by id, of each that the next one is to
    know it would load its model for in vain.
    """

    reason: str
    model: str
    settled: int
    left: Mapping[str, str]
    unserved: Mapping[int, str]


class Worker:
    """Claims, embeds and commits until it is stopped or has nothing left to do."""

    def __init__(self, conninfo: str, settings: WorkerSettings) -> None:
        self._conninfo = conninfo
        self._settings = settings
        self._shutdown = Shutdown()
        self._shared: Shared | None = None
        self._device: DeviceThread[EmbeddingModel] | None = None

    @property
    def claims_in_hand(self) -> int:
        """How many claims its loops hold at this moment, or poll for."""
        return self._shared.turns.in_hand if self._shared else 0

    @property
    def device(self) -> str | None:
        """What its model computes on: mps, cuda, cuda:N or cpu; None until that is known."""
        return self._device.model.device if self._device else None

    @property
    def device_seconds(self) -> float:
        """For how long its device has computed so far."""
        return self._device.busy_seconds if self._device else 0.0

    def stop(self) -> None:
        """Finish the claim in hand and leave; called again: roll it back and leave at once."""
        self._shutdown.ask()

    def run(
        self,
        *,
        on_start: Callable[[int], None] = lambda _: None,
        on_stall: Callable[[], None] = lambda: None,
    ) -> WorkerExit:
        """Work, and return why it ended.

        Calls `on_start` with the worker's id once it is known, and `on_stall` from another thread
        when the device hangs, in which case nothing but the end of the process helps.

        Raises SetupError when the database, the model or the machine is not ready for work.
        """
        traces = open_traces(self._settings.otlp)
        with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
            check_schema(connection)
            chosen = choose_model(connection, self._settings)
        cache_bytes = self._settings.cache_megabytes << 20
        device_thread = DeviceThread(
            chosen.load,
            cache_bytes=cache_bytes,
            on_batch_size=EmbeddingModel.keep_batch_size,
        )
        self._device = device_thread
        with closing(device_thread) as device:
            served = ServedPipelines(self._conninfo, self._settings, chosen, device.model)

            def identity() -> registry.WorkerIdentity:
                return self._identity(device, served)

            shared = self._register(device, served, identity(), traces)
            self._shared = shared
            on_start(shared.worker_id)
            heartbeat = Heartbeat(shared, identity, device.stalled_seconds, on_stall)
            try:
                self._run_loops(shared, heartbeat)
            finally:
                self._sign_off(shared)
                if traces is not None:
                    traces.close()
        if self._shutdown.failure is not None:
            raise self._shutdown.failure
        reason = self._shutdown.reason or STOPPED
        left = served.left_undone() if reason == DRAINED else {}
        for name, why in left.items():
            get_logger().warning("work left undone", pipeline=name, reason=why)
        unserved = served.unserved.reasons() if reason == ANOTHER_MODEL else {}
        return WorkerExit(
            reason=reason,
            model=chosen.key,
            settled=shared.history.records_done,
            left=left,
            unserved=unserved,
        )

    def _identity(
        self, device: DeviceThread[EmbeddingModel], served: ServedPipelines
    ) -> registry.WorkerIdentity:
        return registry.WorkerIdentity(
            device=device.model.device,
            precision=device.model.precision,
            model=device.model.name,
            concurrency=self._settings.concurrency,
            pipeline_ids=[pipeline.id for pipeline in served.pipelines()],
            canary_cosine=device.model.canary_cosine,
        )

    def _register(
        self,
        device: DeviceThread[EmbeddingModel],
        served: ServedPipelines,
        identity: registry.WorkerIdentity,
        traces: Traces | None,
    ) -> Shared:
        with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
            worker_id = registry.register(connection, identity)
        get_logger().info(
            "worker started",
            worker=worker_id,
            device=identity.device,
            precision=identity.precision,
            model=identity.model,
            concurrency=identity.concurrency,
            batch_tokens=device.model.limits.max_tokens_per_batch,
        )
        return Shared.of(
            self._conninfo,
            self._settings,
            worker_id=worker_id,
            device=device,
            served=served,
            shutdown=self._shutdown,
            traces=traces,
        )

    def _run_loops(self, shared: Shared, heartbeat: Heartbeat) -> None:
        loops = [
            threading.Thread(target=_guarded, args=(shared,), name=f"loop {number}", daemon=True)
            for number in range(self._settings.concurrency)
        ]
        builds = IndexBuilds(shared)
        with heartbeat:
            for loop in loops:
                loop.start()
            if not self._settings.drain:
                builds.start()
            while any(loop.is_alive() for loop in loops):
                for loop in loops:
                    loop.join(JOIN_SECONDS)
                if self._shutdown.at_once.is_set():
                    self._shutdown.interrupt()
            if self._settings.drain and self._shutdown.reason in (DRAINED, ANOTHER_MODEL):
                builds.start()
            self._end_builds(builds)

    def _end_builds(self, builds: IndexBuilds) -> None:
        """Wait for the builds of a worker that drains; of another, and at once, cut them short."""
        while builds.is_alive:
            if not self._settings.drain or self._shutdown.at_once.is_set():
                self._shutdown.interrupt()
                # What was cut short is dropped meanwhile.
                builds.join(CLEAN_UP_SECONDS + 1)
            builds.join(JOIN_SECONDS)

    def _sign_off(self, shared: Shared) -> None:
        failure = self._shutdown.failure
        reason = str(failure) if failure else self._shutdown.reason or STOPPED
        get_logger().info("worker stopped", worker=shared.worker_id, reason=reason)
        try:
            with connect(self._conninfo, patience_seconds=BOOKKEEPING_SECONDS) as connection:
                registry.report_work(connection, shared.worker_id, shared.history.report())
                registry.sign_off(connection, shared.worker_id, reason)
        except (PgembedError, psycopg.Error) as error:
            get_logger().warning("could not sign off", reason=first_line(error))


def _guarded(shared: Shared) -> None:
    """Run one loop; a fault of the program ends the whole process, not only its thread."""
    try:
        run_loop(shared)
    except Exception as error:  # noqa: BLE001 (the process must end, whatever it was)
        get_logger().error("loop failed", error=repr(error), exc_info=True)
        shared.shutdown.finish(FAILED, SetupError(f"a fault of pgembed itself: {error!r}"))
