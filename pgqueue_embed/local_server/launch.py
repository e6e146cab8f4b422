"""Bringing the server's process up and down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server import serverlog
from pgqueue_embed.local_server.config import config_text
from pgqueue_embed.local_server.folders import write_private_file
from pgqueue_embed.local_server.layout import ServerLayout
from pgqueue_embed.local_server.ports import is_free, pick_port
from pgqueue_embed.local_server.postmaster import live_pid, remove_stale_pid_file
from pgqueue_embed.local_server.programs import Programs, last_line

# After a crash the server first replays up to max_wal_size of its log.
START_SECONDS = 300.0
STOP_SECONDS = 120
PG_CTL_SECONDS = 60
PAUSE_SECONDS = 0.2

# The last words of a server that does not start.
MOST_LOG_BYTES = 1024**2


def bring_up(
    layout: ServerLayout,
    programs: Programs,
    extra_settings: Mapping[str, str],
    silence: Callable[[], str | None],
) -> None:
    """Start the server and return once it answers; only under the lock.

    ``silence`` asks it, and returns why there is no answer, or None for an answer. Only an answer
    counts: after a kill, the lock file and the memory of orphaned processes can make a start fail
    for a while.
    """
    deadline = time.monotonic() + START_SECONDS
    while (reason := silence()) is not None:
        if live_pid(layout) is None:
            passing = _launch(layout, programs, extra_settings)
            if passing is None:
                continue
            reason = passing
        if time.monotonic() > deadline:
            raise _start_error(layout, reason)
        time.sleep(PAUSE_SECONDS)


def bring_down(layout: ServerLayout, programs: Programs) -> None:
    """Stop a living server and wait for its last checkpoint; only under the lock."""
    done = programs.run(
        "pg_ctl",
        *("-D", layout.data, "-m", "fast", "-w", "-t", str(STOP_SECONDS), "stop"),
        timeout_seconds=STOP_SECONDS + 30,
    )
    if done.returncode != 0 and live_pid(layout) is not None:
        raise LocalServerError(
            f"the private server in {layout.data} does not stop: {last_line(done.stderr)}; "
            f"see {layout.log_file} and try again"
        )


def _launch(
    layout: ServerLayout, programs: Programs, extra_settings: Mapping[str, str]
) -> str | None:
    """Start the process; return the reason of a fault that passes, and raise any other."""
    remove_stale_pid_file(layout)
    layout.rotate_log()
    write_private_file(
        layout.config_file, config_text(_free_port(layout), extra_settings), programs.account
    )
    log_start = layout.log_size()
    done = programs.run(
        "pg_ctl",
        *("-D", layout.data, "-l", layout.log_file),
        *("-w", "-t", str(PG_CTL_SECONDS), "start"),
        timeout_seconds=PG_CTL_SECONDS + 30,
    )
    if done.returncode == 0 or live_pid(layout) is not None:
        return None
    log = _log_since(layout, log_start)
    reason = serverlog.last_fault(log) or last_line(done.stderr)
    if serverlog.port_was_taken(log) or serverlog.is_passing(log):
        return reason
    raise _start_error(layout, reason)


def _free_port(layout: ServerLayout) -> int:
    port = layout.port()
    return port if port is not None and is_free(port) else pick_port()


def _log_since(layout: ServerLayout, position: int) -> str:
    if not layout.log_file.exists():
        return ""
    with layout.log_file.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(position, end - MOST_LOG_BYTES))
        return file.read(MOST_LOG_BYTES).decode("utf-8", errors="replace")


def _start_error(layout: ServerLayout, reason: str) -> LocalServerError:
    return LocalServerError(
        f"the private server in {layout.data} does not start: {reason}; "
        f"see {layout.log_file}, or set PGEMBED_HOME to a new folder"
    )
