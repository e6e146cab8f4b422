"""Programs of the system that are run for what they do; their last line says why they failed."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from pgqueue_embed.errors import SetupError

PATIENCE_SECONDS = 150


def run_program(command: Sequence[str]) -> None:
    """Run a program to its end; raises SetupError with what it said last if it fails."""
    finished = _run(command)
    if finished.returncode:
        said = (finished.stderr or finished.stdout).strip().splitlines()
        reason = said[-1] if said else f"exit code {finished.returncode}"
        raise SetupError(f"{shlex.join(command)}: {reason}")


def succeeds(command: Sequence[str]) -> bool:
    """Return whether a program ends with 0; raises SetupError where there is none."""
    return _run(command).returncode == 0


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_SECONDS,
        )
    except FileNotFoundError:
        raise SetupError(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"{shlex.join(command)}: no end after {PATIENCE_SECONDS} s") from None
