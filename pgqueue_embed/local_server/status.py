"""The state of a local server, in words for a person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """A private server as it was found."""

    running: bool
    """Whether it answers on its port."""
    version: str | None
    """Such as "18.4" while it runs, "18" when it is stopped, None before the first start."""
    port: int | None
    """The loopback port, remembered while it is stopped."""
    pid: int | None
    """The main process, None when it is stopped."""
    shared_account: str | None = None
    """The user that runs it for root, if it is one that other programs have as well."""
    data_folder: Path
    log_file: Path
    size_bytes: int
    """Size of the data folder on disk."""

    @property
    def finding(self) -> str:
        """What is wrong with a `shared_account`."""
        return (
            f"PostgreSQL refuses root, and user {self.shared_account} runs it: what else runs as"
            f" {self.shared_account} on this machine can read its data and its password"
        )

    @property
    def way_out(self) -> str:
        """How to give the server an account of its own."""
        return (
            "pgembed db stop && useradd --system pgembed && chown -R pgembed:"
            f" {self.data_folder} && pgembed db start"
        )
