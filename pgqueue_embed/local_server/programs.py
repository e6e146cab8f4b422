"""Running initdb and pg_ctl."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgqueue_embed.local_server.account import Account


@dataclass(frozen=True)
class Programs:
    """PostgreSQL's programs and the user that runs them (None: the present one)."""

    folder: Path
    account: Account | None

    def run(
        self, name: str, *arguments: str | Path, timeout_seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run one program and return its exit status and output."""
        return subprocess.run(
            [str(self.folder / name), *map(str, arguments)],
            check=False,
            cwd="/",  # the present folder may be closed to the server's user
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_seconds,
            env=_environment(),
            **self._identity(),
        )

    def _identity(self) -> dict[str, Any]:
        if self.account is None:
            return {}
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    # Nothing of the caller's but this: no PG* setting, and no secret, reaches the server. On macOS
    # a server without LC_ALL becomes multithreaded while it starts, and refuses to.
    kept = {name: os.environ[name] for name in ("PATH", "TZ", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


def last_line(output: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
