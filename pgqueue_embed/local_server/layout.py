"""Paths of the parts of one local server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server.config import configured_port
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_bounded

# Of a file that we or PostgreSQL wrote: a version, a password, some settings.
MOST_BYTES = 64 * 1024

MAX_LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class ServerLayout:
    """The files of a server, all named after its data folder."""

    data: Path

    @property
    def version_file(self) -> Path:
        """PostgreSQL's own mark of a data folder: its major version."""
        return self.data / "PG_VERSION"

    @property
    def pid_file(self) -> Path:
        """PostgreSQL's own lock file."""
        return self.data / "postmaster.pid"

    @property
    def password_file(self) -> Path:
        """The superuser's password, mode 0600."""
        return self.data / "pgembed.password"

    @property
    def config_file(self) -> Path:
        """Our settings and the port, included by postgresql.conf."""
        return self.data / "embedded.conf"

    @property
    def log_file(self) -> Path:
        """Everything that the server says."""
        return self.data / "server.log"

    @property
    def lock_file(self) -> Path:
        """Held while a process starts or stops the server; outlives the data folder."""
        return self.data.with_name(self.data.name + ".lock")

    @property
    def staging(self) -> Path:
        """Where initdb works, so that the data folder is complete or absent."""
        return self.data.with_name(self.data.name + ".new")

    def read(self, file: Path) -> str:
        """Return what one of these files says; raises LocalServerError if it is none of ours."""
        try:
            return read_bounded(file, MOST_BYTES).strip()
        except UnreadableFile as error:
            raise LocalServerError(
                f"{error}; put it back, or set PGEMBED_HOME to a new folder"
            ) from None

    def port(self) -> int | None:
        """Return the port that the server had at its last start."""
        return configured_port(self.read(self.config_file)) if self.config_file.exists() else None

    def log_size(self) -> int:
        """Bytes in the log so far."""
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def rotate_log(self) -> None:
        """Keep one old log, so that years of starts do not fill the disk."""
        if self.log_size() > MAX_LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
