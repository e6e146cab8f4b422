"""Jobs of launchd: an agent of a user, or a daemon of the system. See launchd.plist(5)."""

from __future__ import annotations

import os
import plistlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgqueue_embed.service.job import RESTART_SECONDS, STOP_SECONDS, Job
from pgqueue_embed.service.programs import run_program, succeeds

# The Mac stays awake for as long as pgembed lives: `exec` leaves it the shell's process id.
AWAKE = 'caffeinate -i -s -w $$ & exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Launchd:
    """Fulfils job.Manager; `is_system` for daemons that start at boot, before anybody logs in."""

    is_system: bool

    def file(self, name: str) -> Path:
        """Return the path of the property list."""
        root = Path("/Library/LaunchDaemons") if self.is_system else _library() / "LaunchAgents"
        return root / f"{_label(name)}.plist"

    def content(self, job: Job) -> bytes:
        """Return the property list.

        ProcessType Interactive: without it, launchd slows processor and disk down. ExitTimeOut: it
        kills a job 20 seconds after SIGTERM otherwise.
        """
        command = (*job.command, "--log-file", str(self._log_file(job.name)))
        values: dict[str, Any] = {
            "Label": _label(job.name),
            "ProgramArguments": ["/bin/sh", "-c", AWAKE, "pgembed", *command],
            "EnvironmentVariables": dict(job.environment),
            "ProcessType": "Interactive",
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": RESTART_SECONDS,
            "ExitTimeOut": STOP_SECONDS,
            "StandardErrorPath": str(self._log_file(job.name).with_suffix(".err")),
        }
        if job.user:
            values["UserName"] = job.user
        return plistlib.dumps(values, sort_keys=False)

    def load(self, name: str) -> None:
        """Start the job; one that runs is stopped first."""
        self._log_file(name).parent.mkdir(parents=True, exist_ok=True)
        self.unload(name)
        run_program(["launchctl", "bootstrap", self._domain, str(self.file(name))])

    def unload(self, name: str) -> None:
        """Stop the job."""
        succeeds(["launchctl", "bootout", self._target(name)])

    def forget(self) -> None:
        """Nothing is to be done."""

    def is_running(self, name: str) -> bool:
        """Return whether the job is loaded, and so kept alive."""
        return succeeds(["launchctl", "print", self._target(name)])

    def log(self, name: str) -> str:
        """Return how to read its log."""
        return f"tail -f {self._log_file(name)}"

    def notes(self, name: str) -> tuple[str, ...]:
        """Say what a closed lid means."""
        return ("a Mac with a closed lid sleeps: its leases run out, and others take its work",)

    def _log_file(self, name: str) -> Path:
        root = Path("/Library/Logs") if self.is_system else _library() / "Logs"
        return root / f"{name}.log"

    @property
    def _domain(self) -> str:
        return "system" if self.is_system else f"gui/{os.getuid()}"

    def _target(self, name: str) -> str:
        return f"{self._domain}/{_label(name)}"


def _library() -> Path:
    return Path.home() / "Library"


def _label(name: str) -> str:
    return f"pgqueue-embed.{name}"
