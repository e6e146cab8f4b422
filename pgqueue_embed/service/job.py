"""The job that a service manager is to start, and the interface of every such manager here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

# A claim is finished after SIGTERM; it takes some eight seconds, or sixteen with several loops.
STOP_SECONDS = 90
# A worker that cannot start, because the database is away, is started again.
RESTART_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Job:
    """A worker: its command, and what it needs in its environment, which has no password."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


class Manager(Protocol):
    """A service manager: where the file of a job is, what is in it, and how it is loaded.

    `log` says how a person reads what the job logs; `notes` what else there is to be known.
    """

    def file(self, name: str) -> Path:
        """Return the path of a job's file."""

    def content(self, job: Job) -> bytes:
        """Return what is in it."""

    def load(self, name: str) -> None:
        """Start the job now and at every boot or login; raises SetupError."""

    def unload(self, name: str) -> None:
        """Stop it, and start it no more; nothing happens if it is not loaded."""

    def forget(self) -> None:
        """Take notice that a file is gone."""

    def is_running(self, name: str) -> bool:
        """Return whether it runs."""

    def log(self, name: str) -> str:
        """Return how to read its log."""

    def notes(self, name: str) -> tuple[str, ...]:
        """Return sentences for the person who has installed it."""
