"""Reasons of a stop: those that the supervisor acts on, and the beginning of what it notes."""

from __future__ import annotations

DRAINED = "drained"
STOPPED = "stopped"
MAX_RECORDS = "max records reached"
FAILED = "failed"

# The supervisor starts a fresh process at once.
ANOTHER_MODEL = "another model's work waits"
RECYCLED = "memory limit passed"

# Behind it, how a process ended that could not say why itself.
CRASHED = "crashed: "

# The supervisor takes it for a crash over the claims in hand.
STALLED = "the device made no progress"
