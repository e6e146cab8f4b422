"""The program of a process that measures one thing: it reads its orders as a line of JSON.

It writes what it does meanwhile, and what it has found, as lines of JSON on standard output. When
standard input ends, whoever asked is gone, and so is it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psycopg

from pgqueue_embed.errors import PgembedError
from pgqueue_embed.garbage import collect_seldom
from pgqueue_embed.log import LogSettings


def main() -> None:
    """Measure what is asked for, and say what was found or why nothing was."""
    collect_seldom()
    orders = json.loads(sys.stdin.buffer.readline())
    LogSettings(level="error").apply()
    threading.Thread(target=_leave_with_supervisor, daemon=True).start()
    try:
        _tell(found=_measure(orders))
    except PgembedError as error:
        _tell(failed=str(error), exit_code=error.exit_code)
    except psycopg.Error as error:
        from pgqueue_embed.db.errors import refused

        _tell(failed=refused(error), exit_code=PgembedError.exit_code)
    os._exit(0)  # without waiting for a device thread that may hang in a driver


def _measure(orders: Mapping[str, Any]) -> Mapping[str, Any]:
    if "settings" in orders:
        return _work(orders)
    from pgqueue_embed.bench.forward import measure_forward

    return asdict(
        measure_forward(
            orders["model"],
            orders["device"],
            orders["seconds"],
            tell=lambda what: _tell(doing=what),
        )
    )


def _work(orders: Mapping[str, Any]) -> Mapping[str, Any]:
    from pgqueue_embed.worker.settings import WorkerSettings
    from pgqueue_embed.worker.worker import Worker

    worker = Worker(orders["conninfo"], WorkerSettings.from_json(orders["settings"]))
    ended = worker.run()
    return {"reason": ended.reason, "device_seconds": worker.device_seconds}


def _tell(**values: Any) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")


def _leave_with_supervisor() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
