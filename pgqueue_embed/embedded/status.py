"""What a server is doing, for a person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One look at an embedded server."""

    running: bool
    """Whether it answers on its port."""
    version: str | None
    """Such as "18.4" while it runs, "18" when it is stopped, None before the first start."""
    port: int | None
    """The loopback port, remembered while it is stopped."""
    pid: int | None
    """The main process, None when it is stopped."""
    data_folder: Path
    log_file: Path
    size_bytes: int
    """Size of the data folder on disk."""
