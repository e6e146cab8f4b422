"""The worker processes of one command: as many as a person says, or as help."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from pgqueue_embed.log import get_logger
from pgqueue_embed.worker.growth import Growth
from pgqueue_embed.worker.signals import handling
from pgqueue_embed.worker.stop_reasons import STOPPED
from pgqueue_embed.worker.supervisor import TICK_SECONDS, Supervisor


@dataclass(kw_only=True)
class _Member:
    """A supervisor in a thread of its own, and how it ended; one that leaves is done without."""

    supervisor: Supervisor
    is_leaving: bool = False
    ended: str | None = None
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ended = self.supervisor.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self.error = error


class WorkerProcesses:
    """Keeps `count` worker processes at work, or as many as help if that is None.

    `start` makes a supervisor; `on_tick` is called several times a second meanwhile. What a person
    should know of it, one line, is handed to `tell`.
    """

    def __init__(
        self,
        start: Callable[[], Supervisor],
        count: int | None,
        conninfo: str,
        *,
        on_tick: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.interrupted = False
        self._start = start
        self._on_tick = on_tick
        self._tell = tell
        self._has_warned = False
        self._members: list[_Member] = []
        self._count = count
        self._growth = Growth(conninfo, self._worker_ids) if count is None else None
        self._is_stopping = False

    @property
    def left(self) -> Mapping[str, str]:
        """What is left undone: the reason, by pipeline."""
        return {name: why for each in self._staying for name, why in each.supervisor.left.items()}

    def run(self) -> str:
        """Work until it ends, and return why; raises what a supervisor raises.

        Where one fails, the others are stopped; one that was only added to see whether it helps is
        done without.
        """
        with self._signals():
            if self._growth is not None:
                self._growth.start()
            self._add(self._count or 1)
            while any(each.thread.is_alive() for each in self._members):
                self._on_tick()
                self._stop_at_failure()
                self._grow()
                self._warn_of_cpu()
                time.sleep(TICK_SECONDS)
            if self._growth is not None:
                self._growth.stop()
        return self._ending()

    def _ending(self) -> str:
        for each in self._staying:
            if each.error is not None:
                raise each.error
        return STOPPED if self._is_stopping else self._staying[0].ended or STOPPED

    @property
    def _staying(self) -> list[_Member]:
        return [each for each in self._members if not each.is_leaving]

    def _add(self, count: int) -> None:
        self._members += [_Member(supervisor=self._start()) for _ in range(count)]

    def _stop_at_failure(self) -> None:
        failed = [each for each in self._staying if each.error is not None]
        if not failed or self._is_stopping:
            return
        if self._growth is None or len(self._staying) == len(failed):
            self.stop()
            return
        for each in failed:
            each.is_leaving = True
            get_logger().warning("one worker process fewer", reason=str(each.error))
        self._growth.give_up(len(self._staying))

    def _grow(self) -> None:
        staying = self._staying
        if self._growth is None or self._is_stopping or any(each.ended for each in staying):
            return
        if len(staying) < self._growth.wanted:
            self._add(1)
        elif len(staying) > self._growth.wanted:
            staying[-1].is_leaving = True
            staying[-1].supervisor.stop()

    def _warn_of_cpu(self) -> None:
        """Say once that several processes on a CPU are too many, unless each has cores assigned.

        Of those that were found to help it is not said.
        """
        if self._growth is not None:
            return
        devices = [each.supervisor.device for each in self._staying]
        if self._has_warned or len(devices) < 2 or "cpu" not in devices:
            return
        self._has_warned = True
        if "OMP_NUM_THREADS" not in os.environ:
            self._tell(
                f"{len(devices)} processes on one CPU are slower than one, which computes on all"
                " cores; leave --processes out, or share the cores out by OMP_NUM_THREADS"
            )

    def _worker_ids(self) -> list[int]:
        ids = (each.supervisor.worker_id for each in self._staying)
        return [each for each in ids if each is not None]

    def stop(self) -> None:
        """Ask all for the end: after the claims in hand, at once, and the third time by force."""
        self._is_stopping = True
        for each in self._members:
            each.supervisor.stop()

    def _interrupt(self) -> None:
        """Stop at a Ctrl-C."""
        self.interrupted = True
        for each in self._members:
            each.supervisor.interrupted = True
        self.stop()

    def _signals(self) -> AbstractContextManager[None]:
        # A closed terminal is a request to leave, too.
        return handling(
            {
                signal.SIGINT: lambda *_: self._interrupt(),
                signal.SIGTERM: lambda *_: self.stop(),
                signal.SIGHUP: lambda *_: self.stop(),
            }
        )
