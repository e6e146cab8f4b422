"""The processor time that other processes have used."""

from __future__ import annotations

import time

import psutil


def server_seconds(pid: int | None) -> float:
    """Return the processor time of a server and its back ends, those that have ended included."""
    if pid is None:
        return 0.0
    server = psutil.Process(pid)
    times = server.cpu_times()
    ended = float(times.children_user + times.children_system)
    return ended + sum(process_seconds(each) for each in [server, *server.children(recursive=True)])


def process_seconds(process: psutil.Process) -> float:
    """Return the processor time of one process; 0 for one that is gone."""
    try:
        if psutil.LINUX:
            # To the nanosecond, where psutil tells hundredths: see clock_getcpuclockid(3).
            return time.clock_gettime(~process.pid << 3 | 2)
        times = process.cpu_times()
    except (psutil.NoSuchProcess, OSError):
        return 0.0
    return float(times.user + times.system)
