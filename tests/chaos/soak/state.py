"""One run of the soak, which all of its parts share."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgqueue_embed.db.session import connect
from pgqueue_embed.errors import MachineFault, PgembedError
from pgqueue_embed.local_server import LocalServer
from tests.chaos.soak.plan import Plan
from tests.support.light import Supervised

PATIENCE_SECONDS = 180.0

# Workers may need so long for all that waits when the storm is over.
CALM_SECONDS = 600.0


@dataclass
class Soak:
    """The server, its workers, and what has happened so far; `over` ends the storm."""

    plan: Plan
    server: LocalServer
    workers: list[Supervised]
    records: int
    happened: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def conninfo(self) -> str:
        """The connection string of the database, as superuser."""
        return self.server.conninfo()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, which is tried until no fault comes in between."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with suppress(psycopg.OperationalError, PgembedError), connect(self.conninfo) as own:
                cursor = own.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
            assert time.monotonic() < deadline, f"the server never lets this be done: {statement}"
            time.sleep(0.05)

    def wait_for(self, condition: str, values: Sequence[Any], what: str) -> None:
        """Return once a condition in SQL is true, or the storm is over."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.over.is_set() and self.execute(f"select {condition}", values) != [(True,)]:
            assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s in vain: {what}"
            self.over.wait(0.2)

    def replace_ended(self) -> None:
        """Start workers again as launchd would: a machine seemed at fault, or had no database."""
        for number, worker in enumerate(self.workers):
            if worker.thread.is_alive():
                continue
            is_at_fault = isinstance(worker.error, MachineFault)
            assert is_at_fault or "connect" in str(worker.error), worker.error or worker.ending
            self.workers[number] = worker.again()
            self.happened[f"left: {'machine fault' if is_at_fault else 'no database'}"] += 1
