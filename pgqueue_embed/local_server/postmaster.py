"""The server's main process, as its pid file tells of it."""

from __future__ import annotations

from pathlib import Path

from pgqueue_embed.local_server.layout import ServerLayout

MOST_PID_BYTES = 32


def live_pid(layout: ServerLayout) -> int | None:
    """Return the process id of this data folder's living server, or None."""
    pid = recorded_pid(layout.pid_file)
    return pid if pid is not None and _is_server_of(pid, layout.data) else None


def recorded_pid(pid_file: Path) -> int | None:
    """Return the process id in a pid file; None when it is absent, empty or broken."""
    try:
        with pid_file.open("rb") as file:
            first_line = file.readline(MOST_PID_BYTES).decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    # A server in single-user mode writes its id with a minus.
    digits = first_line.strip().lstrip("-")
    return int(digits) if digits.isascii() and digits.isdigit() else None


def remove_stale_pid_file(layout: ServerLayout) -> None:
    """Remove a pid file that would keep PostgreSQL from starting for ever.

    Only under the lock. An empty file is left by a full disk or a power cut. A file whose process
    is another process's now (ids are reused after a reboot) looks alive to PostgreSQL. A file whose
    process is dead is left to PostgreSQL: it holds the key of memory that orphans may still use.
    """
    pid = recorded_pid(layout.pid_file)
    if pid is None or (_exists(pid) and not _is_server_of(pid, layout.data)):
        layout.pid_file.unlink(missing_ok=True)


def _exists(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


def _is_server_of(pid: int, data_folder: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        command = process.cmdline()
    except psutil.Error:
        # Gone, a zombie, or of a user whose processes are hidden from us: never our server.
        return False
    return bool(command) and "postgres" in Path(command[0]).name and str(data_folder) in command
