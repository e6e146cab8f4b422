"""Reading the server's log after a failed start."""

from __future__ import annotations

import re

_FAULT = re.compile(r"\b(?:FATAL|PANIC|ERROR):\s+(?P<text>.+)$", re.MULTILINE)
# What clients are told while the server starts or stops, and what the orphans of a killed server
# still write to the same log: not the reason of a fault.
_NOISE = ("the database system is", "terminating connection")
# A killed server's processes hold its memory and its lock file for a while.
_PASSING = ('lock file "postmaster.pid"', "shared memory block")


def last_fault(log: str) -> str | None:
    """Return the text of the last fault in ``log``, without time and level."""
    faults = _faults(log)
    return faults[-1] if faults else None


def port_was_taken(log: str) -> bool:
    """Whether the server found another program on its port."""
    return "Address already in use" in log


def is_passing(log: str) -> bool:
    """Whether waiting helps: the remains of a killed server are still going."""
    return any(sign in fault for fault in _faults(log) for sign in _PASSING)


def _faults(log: str) -> list[str]:
    texts = (found["text"] for found in _FAULT.finditer(log))
    return [text for text in texts if not text.startswith(_NOISE)]
