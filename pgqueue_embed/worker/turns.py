"""Turns of the pipelines, and of the items that must run alone, among the loops of one worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker.fair_share import FairShare
from pgqueue_embed.worker.gate import Gate

# Suspects are rare; a busy loop polls for them this often, an idle one at every poll.
SUSPECT_POLL_SECONDS = 2.0


@dataclass(kw_only=True)
class Turn:
    """The seconds that a pipeline is charged for its claim in hand."""

    seconds: float = 0.0


class Turns:
    """Whose turn it is, for several threads; a claim is expected to take `claim_seconds`.

    Who works on a suspect enters `gate` alone, and all others share it. `in_hand` counts the claims
    that are held at this moment, or polled for.
    """

    def __init__(self, *, claim_seconds: float) -> None:
        self.gate = Gate()
        self.share = FairShare()
        self._claim_seconds = claim_seconds
        self._lock = threading.Lock()
        self._next_suspect_poll = 0.0
        self.in_hand = 0

    def order(self, pipelines: Mapping[int, Pipeline], claimable: Sequence[int]) -> list[int]:
        """Return the claimable pipelines by whose turn it is, so that none is starved."""
        with self._lock:
            return self.share.order({each: pipelines[each].spec.priority for each in claimable})

    @contextmanager
    def turn(self, pipeline: Pipeline) -> Iterator[Turn]:
        """Charge a pipeline for the claim made inside the block, and while it lasts as expected.

        Else every loop that polls meanwhile would take the same pipeline. A claim that is given
        back counts as a whole turn at least: one that always is would starve the others.
        """
        turn, began = Turn(), time.monotonic()
        self._charge(pipeline, self._claim_seconds, begun=1)
        try:
            yield turn
        except BaseException:
            turn.seconds = max(self._claim_seconds, time.monotonic() - began)
            raise
        finally:
            self._charge(pipeline, turn.seconds - self._claim_seconds, begun=-1)

    def suspects_due(self, *, idle: bool) -> bool:
        """Return whether it is time to poll for items that must run alone."""
        with self._lock:
            due = idle or time.monotonic() >= self._next_suspect_poll
            if due:
                self._next_suspect_poll = time.monotonic() + SUSPECT_POLL_SECONDS
        return due

    def _charge(self, pipeline: Pipeline, seconds: float, *, begun: int) -> None:
        with self._lock:
            self.in_hand += begun
            self.share.charge(pipeline.id, seconds, pipeline.spec.priority)
