"""The program of the process that a supervisor starts, by python_process.

It reads its orders as one line of JSON from standard input, so that no password shows in `ps`,
and reports on the file descriptor that the orders name. When standard input ends, the supervisor
is gone, and the worker stops as if told to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from pgqueue_embed.db.errors import is_away, refused
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.garbage import collect_seldom
from pgqueue_embed.log import LogSettings
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.stop_reasons import STALLED

if TYPE_CHECKING:
    from pgqueue_embed.worker.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All that a worker process is told."""

    conninfo: str
    settings: WorkerSettings
    log: LogSettings
    report_descriptor: int

    def to_line(self) -> bytes:
        """Return the orders as one line of JSON."""
        values = {
            "conninfo": self.conninfo,
            "settings": self.settings.to_json(),
            "log": vars(self.log),
            "report_descriptor": self.report_descriptor,
        }
        return json.dumps(values).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Orders:
        """Return the orders that `to_line` wrote."""
        values = json.loads(line)
        return cls(
            conninfo=values["conninfo"],
            settings=WorkerSettings.from_json(values["settings"]),
            log=LogSettings(**values["log"]),
            report_descriptor=values["report_descriptor"],
        )


class Reporter:
    """Tells the supervisor, a line of JSON at a time, what became of the worker."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, **values: Any) -> None:
        """Write one report; a supervisor that is gone hears nothing."""
        with suppress(OSError):
            os.write(self._descriptor, json.dumps(values).encode() + b"\n")


def main() -> None:
    """Work as ordered; always exits with 0 once the exit is reported."""
    collect_seldom()
    orders = Orders.from_line(sys.stdin.buffer.readline())
    orders.log.apply()
    report = Reporter(orders.report_descriptor)
    # Imported late: the orders decide about the log that torch's import may write to.
    from pgqueue_embed.worker.worker import Worker

    worker = Worker(orders.conninfo, orders.settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stop(worker, report))
    threading.Thread(target=_watch_supervisor, args=(worker.stop,), daemon=True).start()
    try:
        exit_ = worker.run(
            on_start=lambda worker_id: report.tell(worker_id=worker_id, device=worker.device),
            on_stall=lambda: _leave_stalled(report),
        )
    except (PgembedError, psycopg.Error) as error:
        failed = str(error) if isinstance(error, PgembedError) else refused(error)
        exit_code = getattr(error, "exit_code", PgembedError.exit_code)
        report.tell(failed=failed, exit_code=exit_code, unavailable=is_away(error))
    else:
        report.tell(
            ended=exit_.reason,
            model=exit_.model,
            settled=exit_.settled,
            left=dict(exit_.left),
            unserved=list(exit_.unserved.items()),
        )
    _leave()


def _stop(worker: Worker, report: Reporter) -> None:
    worker.stop()
    report.tell(claims_in_hand=worker.claims_in_hand)


def _watch_supervisor(stop: Any) -> None:
    sys.stdin.buffer.read()
    stop()


def _leave_stalled(report: Reporter) -> None:
    report.tell(ended=STALLED)
    _leave()


def _leave() -> None:
    """Exit without waiting for a device thread that may hang in a driver."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
