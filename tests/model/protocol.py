"""The claim and commit protocol as a state model: one record, two workers, a user, faults.

A step is a statement as PostgreSQL runs it under READ COMMITTED: it sees what is committed when it
begins, row locks make it wait, and what it writes shows to nobody before COMMIT. Statements that
neither wait nor read what others write are left out, since a crash there cannot be told apart from
one at the statement before.

`Protocol` is what the program does. Its flags break it on purpose, one rule at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

# The text of the record: absent, or one of two versions. The text may come back to an old one.
GONE = 0
TEXTS = (1, 2)

# The ledger row: none, one without a verdict, `n` for embedded with text n, `-n` for dead with it.
NO_ROW = -9
NO_VERDICT = 0

# What a worker sees of the record: its text, its ledger row, its chunks.
Sight = tuple[int, int, tuple[int, ...]]


class Worker(NamedTuple):
    """One worker loop: where it is in its claim, and what it knows."""

    at: str = "idle"
    items: int = 0
    read: int = GONE
    unchanged: bool = False
    seen: Sight | tuple[()] = ()
    verdict: str = ""
    before: int = NO_ROW
    removed: tuple[int, ...] = ()


IDLE = Worker()

# Where a worker holds the record's row in the ledger.
LOCKED = frozenset({"locked", "judged", "deleted"})


class World(NamedTuple):
    """What is committed, and the workers."""

    source: int
    ledger: int
    target: tuple[int, ...]
    free_items: int
    counted: int
    workers: tuple[Worker, ...]
    changes_left: int
    faults_left: int
    scan_due: bool = False
    hidings_left: int = 0
    hidden: bool = False


Steps = Iterator[tuple[str, World]]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The model of the protocol; each flag switches one of its rules off.

    With `capture` each change of the source queues its key in its own commit; without it, the
    user changes texts and runs an enqueue some time later. `poison` is a text that cannot be
    embedded. `hidings` is how often row security is switched on for the source, under which a role
    sees no rows; who asks for that to be an error, is told.
    """

    capture: bool = True
    poison: int | None = None
    items: int = 2
    changes: int = 2
    faults: int = 1
    hidings: int = 0
    mutex: bool = True
    recheck: bool = True
    judge_unchanged_before_mutex: bool = False
    delete_gone_without_mutex: bool = False
    read_ledger_with_lock: bool = False
    enqueue_trusts_items_in_flight: bool = False
    enqueue_finds_gone_by_ledger_alone: bool = False
    no_rows_seen_are_gone: bool = False

    def initial(self) -> World:
        """Return a new record that is queued `items` times."""
        return World(
            *(1, NO_ROW, (), self.items, 0, (IDLE, IDLE), self.changes, self.faults),
            hidings_left=self.hidings,
        )

    def is_finished(self, world: World) -> bool:
        """Return whether nothing is pending and nobody works."""
        is_quiet = world.free_items == 0 and world.workers == (IDLE, IDLE)
        return is_quiet and not world.scan_due and not world.hidden

    def breach(self, world: World) -> str | None:
        """Return the promise that `world` breaks, or None."""
        if len(world.target) > 1:
            return "the record's vectors are there twice"
        if world.target != ((world.ledger,) if world.ledger > 0 else ()):
            return "the vectors are not those of the ledger's text"
        if world.counted != (world.ledger > 0):
            return "progress counts another number of embedded records than the ledger has"
        if self.is_finished(world) and world.ledger != self._due(world.source):
            return "nothing is pending, and the ledger is not about the current text"
        return None

    def _due(self, source: int) -> int:
        if source == GONE:
            return NO_ROW
        return -source if source == self.poison else source

    def steps(self, world: World) -> Steps:
        """Return what the user, the faults and each worker can do."""
        yield from self._user(world)
        for number, worker in enumerate(world.workers):
            if worker.at != "idle":
                yield from self._faults(world, number, worker)
            following = getattr(self, f"_when_{worker.at}")
            for name, changed in following(world, number, worker):
                yield f"worker {number}: {name}", _without_names(changed)

    def _user(self, world: World) -> Steps:
        if world.changes_left:
            for text in (GONE, *TEXTS):
                if text != world.source:
                    yield f"user: text becomes {text}", self._changed(world, text)
        if world.scan_due and not self._is_refused(world):
            yield "user: enqueue", self._scanned(world)
        if world.hidden:
            yield "user: switches row security off", world._replace(hidden=False)
        elif world.hidings_left:
            hidden = world._replace(hidden=True, hidings_left=world.hidings_left - 1)
            yield "user: switches row security on", hidden

    def _is_refused(self, world: World) -> bool:
        return world.hidden and not self.no_rows_seen_are_gone

    def _changed(self, world: World, text: int) -> World:
        return world._replace(
            source=text,
            free_items=world.free_items + self.capture,
            changes_left=world.changes_left - 1,
            scan_due=not self.capture,
        )

    def _scanned(self, world: World) -> World:
        """What enqueue does, a single statement.

        An item in flight does not make a key pending: its claim may have compared the text
        before it changed. One whose attempt is not logged yet has not read anything. A record
        that is gone is found by its ledger row, or by an item in flight.
        """
        flying = [worker.at for worker in world.workers if worker.at != "idle"]
        trusted = flying if self.enqueue_trusts_items_in_flight else {"claimed"} & set(flying)
        if world.free_items or trusted:
            wanted = False
        else:
            source = _source(world)
            wanted = bool(flying) or world.ledger not in (source, -source)
            if source == GONE:
                by_ledger = self.enqueue_finds_gone_by_ledger_alone
                wanted = world.ledger != NO_ROW or (bool(flying) and not by_ledger)
        return world._replace(scan_due=False, free_items=world.free_items + wanted)

    def _faults(self, world: World, number: int, worker: Worker) -> Steps:
        if not world.faults_left:
            return
        world = world._replace(faults_left=world.faults_left - 1)
        lost = _given_back(world, number, worker)
        yield f"worker {number}: crashes or loses its connection", _without_names(lost)
        if worker.at == "written":
            applied = self._commit(world, number, worker)
            yield f"worker {number}: commits and never hears of it", _without_names(applied)

    def _when_idle(self, world: World, number: int, _: Worker) -> Steps:
        for items in {1, world.free_items} if world.free_items else ():
            claimed = Worker("claimed", items)
            free_items = world.free_items - items
            yield f"claims {items} item(s)", _with(world, number, claimed, free_items=free_items)

    def _when_claimed(self, world: World, number: int, worker: Worker) -> Steps:
        yield "logs its attempt", _with(world, number, worker._replace(at="logged"))

    def _when_logged(self, world: World, number: int, worker: Worker) -> Steps:
        if self._is_refused(world):
            yield "may not read, and gives its claim back", _given_back(world, number, worker)
            return
        source = _source(world)
        unchanged = world.ledger == source and world.target == (source,)
        read = worker._replace(at="embedded", read=source, unchanged=unchanged)
        yield f"reads text {source} and embeds it", _with(world, number, read)

    def _when_embedded(self, world: World, number: int, worker: Worker) -> Steps:
        if worker.unchanged and self.judge_unchanged_before_mutex:
            yield "keeps it", _with(world, number, worker._replace(at="written", verdict="keep"))
        elif worker.read == GONE and self.delete_gone_without_mutex:
            forget = worker._replace(at="judged", verdict="forget", before=world.ledger)
            yield "takes it for gone", _with(world, number, forget)
        elif self.mutex:
            seen = _sight(world) if self.read_ledger_with_lock else ()
            waiting = worker._replace(at="locking", seen=seen)
            yield "asks for the mutex", _with(world, number, waiting)
        else:
            yield "goes on without the mutex", _with(world, number, worker._replace(at="locked"))

    def _when_locking(self, world: World, number: int, worker: Worker) -> Steps:
        if not any(other.at in LOCKED | {"written"} for other in world.workers):
            yield "has the mutex", _with(world, number, worker._replace(at="locked"))

    def _when_locked(self, world: World, number: int, worker: Worker) -> Steps:
        if self._is_refused(world):
            yield "may not re-check, and gives its claim back", _given_back(world, number, worker)
            return
        source, ledger, target = worker.seen or _sight(world)
        verdict = self._verdict(worker, source, ledger, target)
        judged = worker._replace(at="judged", verdict=verdict, before=ledger, seen=())
        yield f"re-checks: {verdict}", _with(world, number, judged)
        yield from self._lock_timeout(world, number, worker)

    def _verdict(self, worker: Worker, source: int, ledger: int, target: tuple[int, ...]) -> str:
        """The same decisions as verdicts.decide."""
        if not self.recheck:
            source = worker.read
        if source == GONE:
            return "forget"
        if worker.read != source:
            return "requeue"
        if ledger == source and target == (source,):
            return "keep"
        if source == self.poison:
            return "give up"
        return "requeue" if worker.unchanged else "replace"

    def _when_judged(self, world: World, number: int, worker: Worker) -> Steps:
        if worker.verdict in ("keep", "requeue"):
            yield "has nothing to write", _with(world, number, worker._replace(at="written"))
        elif not any(other.at == "written" and other.removed for other in world.workers):
            deleted = worker._replace(at="deleted", removed=world.target)
            yield f"deletes chunks {world.target}", _with(world, number, deleted)
        yield from self._lock_timeout(world, number, worker)

    def _when_deleted(self, world: World, number: int, worker: Worker) -> Steps:
        yield "inserts its chunks", _with(world, number, worker._replace(at="written"))
        yield from self._lock_timeout(world, number, worker)

    def _lock_timeout(self, world: World, number: int, worker: Worker) -> Steps:
        """A lock of the user's: back to the savepoint, the vectors in hand, no lock held."""
        again = Worker("embedded", worker.items, worker.read, worker.unchanged)
        yield "waits in vain for a user's lock", _with(world, number, again)

    def _when_written(self, world: World, number: int, worker: Worker) -> Steps:
        yield "commits", self._commit(world, number, worker)

    def _commit(self, world: World, number: int, worker: Worker) -> World:
        ledger, free_items = world.ledger, world.free_items
        target = _minus(world.target, worker.removed)
        if worker.verdict == "forget":
            ledger = NO_ROW
        elif worker.verdict == "replace":
            ledger, target = worker.read, (*target, worker.read)
        elif worker.verdict == "give up":
            ledger = -worker.read
        elif worker.verdict == "requeue":
            ledger, free_items = NO_VERDICT if ledger == NO_ROW else ledger, free_items + 1
        counted = world.counted
        if worker.verdict in ("forget", "replace", "give up"):
            counted += (ledger > 0) - (worker.before > 0)
        return _with(
            world,
            number,
            IDLE,
            ledger=ledger,
            target=target,
            free_items=free_items,
            counted=counted,
        )


def _minus(target: tuple[int, ...], removed: tuple[int, ...]) -> tuple[int, ...]:
    left = list(target)
    for chunk in removed:
        if chunk in left:
            left.remove(chunk)
    return tuple(left)


def _source(world: World) -> int:
    """Return the text that a statement finds, if it is not refused."""
    return GONE if world.hidden else world.source


def _sight(world: World) -> Sight:
    return _source(world), world.ledger, world.target


def _given_back(world: World, number: int, worker: Worker) -> World:
    return _with(world, number, IDLE, free_items=world.free_items + worker.items)


def _with(world: World, number: int, worker: Worker, **changes: Any) -> World:
    others = world.workers[:number], world.workers[number + 1 :]
    workers = (*others[0], worker, *others[1])
    return world._replace(workers=workers, **changes)


def _without_names(world: World) -> World:
    """Put the workers in one order: which of two equal workers does a thing is all the same."""
    first, second = world.workers
    return world if first <= second else world._replace(workers=(second, first))
