"""Named points of a claim at which a worker can be made to die, freeze or lose its connection.

The program knows nothing of them: they are wrapped around its functions in the worker process of a
test. `PGEMBED_TEST_FAULT=point:action:file` strikes once, whichever process gets there first; the
file tells that it did.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg

from pgqueue_embed.claim import process
from pgqueue_embed.db.session import Connection
from pgqueue_embed.ledger import records
from pgqueue_embed.queue.claims import Claim
from pgqueue_embed.target.chunk_table import ChunkTable

FAULT_VARIABLE = "PGEMBED_TEST_FAULT"
DSN_VARIABLE = "PGEMBED_TEST_DSN"

# Each point with the function after whose first useful return it lies.
AFTER: dict[str, tuple[ModuleType | type, str]] = {
    "after_claim": (process, "claim_items"),
    "after_attempt": (process, "log_attempts"),
    "after_read": (process, "read_in_time"),
    "after_mutex": (records, "lock_records"),
    "after_recheck": (records, "read_current"),
    "after_delete": (ChunkTable, "clear"),
    "after_insert": (ChunkTable, "insert"),
    "after_ledger": (records, "settle"),
    "before_commit": (process, "record_commit"),
    "after_commit": (process, "_rate"),
}

# Those reached while something runs: a forward pass, and the statement that inserts the chunks.
WITHIN = ("mid_embed", "mid_insert")

POINTS = (*list(AFTER)[:3], "mid_embed", *list(AFTER)[3:6], "mid_insert", *list(AFTER)[6:])

# The points at which the worker holds a claim that it can lose.
CLAIMED = tuple(point for point in POINTS if point != "after_commit")

# A trigger that makes the statement last long enough to be struck in the middle.
SLOW_INSERT = """
create function public.dawdle() returns trigger language plpgsql as $$
begin
    perform pg_catalog.pg_sleep(0.25);
    return null;
end $$;
create trigger dawdle before insert on public.reports_chunks
for each statement execute function public.dawdle()
"""


@dataclass(frozen=True)
class Fault:
    """What happens where; `file` appears when it does, and keeps it from happening again."""

    point: str
    action: str
    file: Path

    def __str__(self) -> str:
        return f"{self.point}:{self.action}:{self.file}"

    @classmethod
    def from_environment(cls) -> Fault | None:
        """Return the fault that this process is to suffer, if any."""
        text = os.environ.get(FAULT_VARIABLE)
        if not text:
            return None
        point, action, file = text.split(":", 2)
        return cls(point, action, Path(file))

    def has_struck(self) -> bool:
        """Return whether some process has got there."""
        return self.file.exists()

    def strike(self) -> None:
        """Do it, unless it is done already."""
        try:
            self.file.open("x").close()
        except FileExistsError:
            return
        ACTIONS[self.action]()


_fault: Fault | None = None
# The back end of the claim in hand; one loop is enough for a process with a fault.
_claim_pid = 0


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.1)  # other threads than this one may be stopped first


def _fail() -> None:
    raise RuntimeError("a fault of the program itself")


def _terminate() -> None:
    """End the back end of the claim, and wait until it is gone."""
    alive = "select from pg_stat_activity where pid = %s"
    with psycopg.connect(os.environ[DSN_VARIABLE], autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s)", (_claim_pid,))
        while other.execute(alive, (_claim_pid,)).fetchone():
            time.sleep(0.01)


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "stop": _stop,
    "terminate": _terminate,
    "raise": _fail,
}


def reach(point: str) -> None:
    """Strike if the fault of this process lies at `point`."""
    if _fault is not None and _fault.point == point:
        _fault.strike()


def install(fault: Fault | None = None) -> Callable[[], None]:
    """Wrap the functions of a claim for `fault` or that of the environment; returns the undoing."""
    global _fault
    _fault = fault or Fault.from_environment()
    if _fault is None:
        return lambda: None
    originals = [(module, name, getattr(module, name)) for module, name in set(AFTER.values())]
    for point, (module, name) in AFTER.items():
        setattr(module, name, _then(getattr(module, name), point))

    def undo() -> None:
        for module, name, original in originals:
            setattr(module, name, original)

    return undo


def _then(function: Callable[..., Any], point: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if point == "after_insert":
            _strike_soon("mid_insert")
        result = function(*args, **kwargs)
        if point == "after_claim":
            _remember_claim(args[0], result)
        if point != "after_claim" or result is not None:
            reach(point)
        return result

    return wrapped


def _remember_claim(connection: Connection, claim: Claim | None) -> None:
    global _claim_pid
    if claim is not None:
        _claim_pid = connection.info.backend_pid


def _strike_soon(point: str) -> None:
    """Strike while the statement that is about to be sent runs."""
    if _fault is not None and _fault.point == point and not _fault.has_struck():
        threading.Timer(0.1, reach, (point,)).start()
