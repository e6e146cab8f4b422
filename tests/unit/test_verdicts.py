"""The fate of a record: every finding against every state of the database."""

from __future__ import annotations

import itertools

import pytest

from pgqueue_embed.ledger.verdicts import Current, Finding, Found, Verdict, decide, state_after

READ = b"hash of the text that was read"
CHANGED = b"hash of another text"
GENERATION = 2
MAX_ATTEMPTS = 3


def finding(found: Found, **fields: object) -> Finding:
    hash_ = None if found is Found.DELETED else READ
    return Finding(**{"key": "1", "found": found, "document_hash": hash_, **fields})  # type: ignore[arg-type]


def current(**fields: object) -> Current:
    """A record whose text is still the one that was read, and which nobody has settled."""
    usual: dict[str, object] = {
        "key": "1",
        "present": True,
        "document_hash": READ,
        "state": None,
        "generation": None,
        "ledger_hash": None,
        "chunks_agree": True,
        "attempts": 0,
        "failed_hash": None,
    }
    return Current(**{**usual, **fields})  # type: ignore[arg-type]


def settled(state: str = "embedded", **fields: object) -> Current:
    usual = {"state": state, "generation": GENERATION, "ledger_hash": READ}
    return current(**{**usual, **fields})


def verdict(finding: Finding, current: Current) -> Verdict:
    return decide(finding, current, generation=GENERATION, max_attempts=MAX_ATTEMPTS)


UNSETTLED = {
    "new": current(),
    "of older text": settled(ledger_hash=CHANGED),
    "of older configuration": settled(generation=1),
    "without its chunks": settled(chunks_agree=False),
    "dead": settled("dead"),
}
SETTLED = {"embedded": settled(), "empty": settled("empty")}
EVERY_FOUND = list(Found)


@pytest.mark.parametrize("found", EVERY_FOUND)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("state", [*UNSETTLED.values(), *SETTLED.values()], ids=str)
def test_absent_record_is_forgotten_whatever_was_found(
    found: Found, again: bool, state: Current
) -> None:
    absent = current(present=False, state=state.state, document_hash=READ)
    assert verdict(finding(found, embed_again=again), absent) is Verdict.FORGET


@pytest.mark.parametrize("found", EVERY_FOUND)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("state", [None, "embedded", "empty", "dead"])
def test_record_that_changed_since_it_was_read_is_queued_again(
    found: Found, again: bool, state: str | None
) -> None:
    changed = current(document_hash=CHANGED, state=state, ledger_hash=CHANGED)
    assert verdict(finding(found, embed_again=again), changed) is Verdict.REQUEUE


@pytest.mark.parametrize("state", [*UNSETTLED.values(), *SETTLED.values()], ids=str)
def test_record_that_came_back_is_queued_again(state: Current) -> None:
    assert verdict(finding(Found.DELETED), state) is Verdict.REQUEUE


@pytest.mark.parametrize("found", [Found.UNCHANGED, Found.EMPTY, Found.EMBEDDED, Found.FAILED])
@pytest.mark.parametrize("state", SETTLED.values(), ids=SETTLED.keys())
def test_settled_record_is_kept_whatever_was_found(found: Found, state: Current) -> None:
    assert verdict(finding(found), state) is Verdict.KEEP


@pytest.mark.parametrize("state", UNSETTLED.values(), ids=UNSETTLED.keys())
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found.UNCHANGED, Verdict.REQUEUE),
        (Found.EMPTY, Verdict.MARK_EMPTY),
        (Found.EMBEDDED, Verdict.REPLACE),
        (Found.FAILED, Verdict.RETRY),
    ],
)
def test_unsettled_record_gets_what_was_found(
    state: Current, found: Found, expected: Verdict
) -> None:
    assert verdict(finding(found), state) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found.EMPTY, Verdict.MARK_EMPTY),
        (Found.EMBEDDED, Verdict.REPLACE),
        (Found.FAILED, Verdict.RETRY),
        (Found.UNCHANGED, Verdict.REQUEUE),
    ],
)
@pytest.mark.parametrize("state", SETTLED.values(), ids=SETTLED.keys())
def test_settled_record_is_embedded_again_if_asked(
    state: Current, found: Found, expected: Verdict
) -> None:
    assert verdict(finding(found, embed_again=True), state) is expected


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [(0, Verdict.RETRY), (1, Verdict.RETRY), (2, Verdict.GIVE_UP), (7, Verdict.GIVE_UP)],
)
def test_record_is_given_up_on_at_the_last_attempt(attempts: int, expected: Verdict) -> None:
    tried = current(attempts=attempts, failed_hash=READ)
    assert verdict(finding(Found.FAILED), tried) is expected


def test_attempts_start_again_when_the_text_changes() -> None:
    tried = current(attempts=2, failed_hash=CHANGED)
    assert tried.attempts_with(finding(Found.FAILED)) == 1
    assert verdict(finding(Found.FAILED), tried) is Verdict.RETRY


def test_hopeless_record_is_given_up_on_at_once() -> None:
    assert verdict(finding(Found.FAILED, hopeless=True), current()) is Verdict.GIVE_UP


def test_a_finding_of_text_that_is_not_current_never_counts() -> None:
    """The whole table: nothing is written, charged or kept on the strength of an older text."""
    for found, again, hopeless, state, attempts in itertools.product(
        EVERY_FOUND,
        [False, True],
        [False, True],
        [None, "embedded", "empty", "dead"],
        range(4),
    ):
        old = finding(found, embed_again=again, hopeless=hopeless)
        now = current(
            document_hash=CHANGED,
            state=state,
            generation=GENERATION,
            attempts=attempts,
            failed_hash=READ,
        )
        assert verdict(old, now) is Verdict.REQUEUE


@pytest.mark.parametrize("before", [None, "embedded", "empty", "dead"])
@pytest.mark.parametrize(
    ("decided", "after"),
    [
        (Verdict.FORGET, None),
        (Verdict.MARK_EMPTY, "empty"),
        (Verdict.REPLACE, "embedded"),
        (Verdict.GIVE_UP, "dead"),
    ],
)
def test_final_verdict_sets_the_state(before: str | None, decided: Verdict, after: str) -> None:
    assert state_after(decided, before) == after


@pytest.mark.parametrize("before", [None, "embedded", "empty", "dead"])
@pytest.mark.parametrize("decided", [Verdict.KEEP, Verdict.REQUEUE, Verdict.RETRY])
def test_other_verdicts_leave_the_state_alone(before: str | None, decided: Verdict) -> None:
    assert state_after(decided, before) == before
