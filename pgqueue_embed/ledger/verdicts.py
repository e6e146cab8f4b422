"""Decides what becomes of a record at the write: pure, from what was found and what is current.

Everything read before the mutex is a hint. `decide` compares it with what the database says under
the mutex, and is the only place where the fate of a record is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Found(Enum):
    """What the claim found out about a record before the mutex was held."""

    DELETED = "gone"
    UNCHANGED = "unchanged"
    EMPTY = "empty"
    EMBEDDED = "embedded"
    FAILED = "failed"


class Verdict(Enum):
    """What is done about a record under the mutex."""

    FORGET = "forget"
    LEAVE = "leave"
    KEEP = "keep"
    MARK_EMPTY = "mark empty"
    REPLACE = "replace"
    REQUEUE = "requeue"
    RETRY = "retry"
    GIVE_UP = "give up"


# The hash of a text that could not be read in time: that of no text.
UNREAD = b""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One record of a claim as the work on it ended.

    `first_chunk` and `chunks` are the record's rows in the claim's chunk list. `hopeless` means
    that no further attempt is worth it, `stuck` that the target keeps the chunks that it has.
    `allow_deletes` is what whoever queued it says: a record which is not there has been deleted.
    """

    key: str
    found: Found
    embed_again: bool = False
    document_hash: bytes | None = None
    first_chunk: int = 0
    chunks: int = 0
    error: str | None = None
    hopeless: bool = False
    stuck: bool = False
    allow_deletes: bool = False


@dataclass(frozen=True, kw_only=True)
class Current:
    """One record as it stands under the mutex.

    Of a record that is not `present`, `excluded` tells that its row is there, and the pipeline's
    condition does not let it in, and `has_chunks` whether the target holds any of it.
    `chunks_agree` tells whether the target holds as many chunks as the ledger says.
    """

    key: str
    present: bool
    excluded: bool = False
    has_chunks: bool = False
    document_hash: bytes
    state: str | None
    generation: int | None
    ledger_hash: bytes | None
    chunks_agree: bool
    attempts: int
    failed_hash: bytes | None

    def is_settled(self, generation: int) -> bool:
        """Return whether the ledger's state belongs to the current text and configuration."""
        return (
            self.state in ("embedded", "empty")
            and self.ledger_hash == self.document_hash
            and self.generation == generation
            and self.chunks_agree
        )

    def attempts_with(self, finding: Finding) -> int:
        """Return the failed attempts at the current text, the one of `finding` included."""
        return 1 + (self.attempts if self.failed_hash == finding.document_hash else 0)


def decide(finding: Finding, current: Current, *, generation: int, max_attempts: int) -> Verdict:
    """Return what becomes of the record; a finding counts only if its text is still current.

    But for one that is stuck: its chunks cannot be deleted, whatever else is known.
    """
    exhausted = finding.hopeless or current.attempts_with(finding) >= max_attempts
    failed = Verdict.GIVE_UP if exhausted else Verdict.RETRY
    if finding.stuck:
        return failed
    if not current.present:
        # A table that was exchanged for an empty one, a foreign server that answers nothing, a
        # replica that lags: that a row cannot be found does not say that it was deleted.
        evident = finding.allow_deletes or current.excluded or not current.has_chunks
        return Verdict.FORGET if evident else Verdict.LEAVE
    if finding.found is Found.DELETED or finding.document_hash != current.document_hash:
        return Verdict.REQUEUE
    if current.is_settled(generation) and not finding.embed_again:
        return Verdict.KEEP
    if finding.found is Found.FAILED:
        return failed
    return {
        Found.UNCHANGED: Verdict.REQUEUE,
        Found.EMPTY: Verdict.MARK_EMPTY,
        Found.EMBEDDED: Verdict.REPLACE,
    }[finding.found]


# The state that a verdict leaves behind; the others leave it as it is.
STATE_AFTER = {
    Verdict.FORGET: None,
    Verdict.MARK_EMPTY: "empty",
    Verdict.REPLACE: "embedded",
    Verdict.GIVE_UP: "dead",
}


# The key of a record that met one of these is back in the queue; the others have left it.
PUT_BACK = (Verdict.REQUEUE, Verdict.RETRY)


def state_after(verdict: Verdict, before: str | None) -> str | None:
    """Return the ledger state of a record once `verdict` is carried out."""
    return STATE_AFTER.get(verdict, before)
