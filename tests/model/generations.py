"""A switch of generations as a state model: one record, a worker of each generation, a writer.

A step is a statement as in `protocol`; what one claim of one generation does to itself is that
model's business. Here every text of the record has a number of its own, and a generation knows
which one it has seen last.

`Generations` is what the program does. Its flags break it on purpose, one rule at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# A text is a positive number; a negative one is the record being gone since that change. What a
# generation has settled is the same, or this:
NOTHING = 0

# Where a worker shares the lock of its generation, which a switch holds alone.
WRITING = frozenset({"locked", "checked", "looked"})


class Worker(NamedTuple):
    """The worker of one generation: where it is in its claim, and what it knows."""

    at: str = "idle"
    changes: int = 0
    bulk: int = 0
    read: int = NOTHING
    requeue: bool = False
    sees_successor: bool = False


IDLE = Worker()


class World(NamedTuple):
    """What is committed, the two workers, and how far the user and the switch are.

    Of each queue: changes of the source, and bulk, which a switch waits for. Those of the old
    generation in `held` are locked by the switch.
    """

    source: int
    old: int
    new: int
    old_queue: int
    held: int
    new_changes: int
    new_bulk: int
    old_worker: Worker
    new_worker: Worker
    phase: str
    switch: str
    changes_left: int
    crashes_left: int
    scan_due: bool = False
    behind: bool = False


Steps = Iterator[tuple[str, World]]


@dataclass(frozen=True, kw_only=True)
class Generations:
    """The model of two generations; each flag switches a rule off.

    With `capture` each change of the source queues its key for each generation that there is;
    without it, the user runs an enqueue some time later.
    """

    capture: bool = True
    changes: int = 2
    crashes: int = 1
    hand_on: bool = True
    look_after_the_recheck: bool = True
    lock_generations: bool = True
    wait_for_bulk: bool = True
    requeue_keeps_priority: bool = True
    scan_before_the_switch: bool = True
    compare_ledgers: bool = True
    take_over_queue: bool = True

    def initial(self) -> World:
        """Return a new record that is queued for the one generation that there is."""
        return World(
            *(1, NOTHING, NOTHING, 1, 0, 0, 0, IDLE, IDLE, "one", "idle"),
            *(self.changes, self.crashes),
        )

    def is_finished(self, world: World) -> bool:
        """Return whether the generations are switched, nothing is pending and nobody works."""
        return (
            world.phase == "switched"
            and world.new_changes + world.new_bulk + world.old_queue == 0
            and world.old_worker == world.new_worker == IDLE
            and not world.scan_due
        )

    def breach(self, world: World) -> str | None:
        """Return the promise that `world` breaks, or None."""
        if world.behind:
            return "what takes the old generation's place has seen less than that"
        if self.is_finished(world) and not _is_about(world.new, world.source):
            return "nothing is pending, and the vectors are not those of the current text"
        return None

    def steps(self, world: World) -> Steps:
        """Return what the user, the switch and each worker can do."""
        yield from self._user(world)
        yield from self._begin(world)
        yield from self._switch(world)
        yield from self._old_worker(world)
        yield from self._new_worker(world)

    # The user ---------------------------------------------------------------------------------

    def _user(self, world: World) -> Steps:
        if world.changes_left:
            number = abs(world.source) + 1
            yield "user: changes the text", self._changed(world, number)
            if world.source > 0:
                yield "user: deletes the record", self._changed(world, -number)
        if world.scan_due:
            yield "user: enqueue", _enqueued(world)

    def _changed(self, world: World, source: int) -> World:
        changed = world._replace(source=source, changes_left=world.changes_left - 1)
        if not self.capture:
            return changed._replace(scan_due=True)
        if world.phase == "one":
            return changed._replace(old_queue=world.old_queue + 1)
        changed = changed._replace(new_changes=world.new_changes + 1)
        if world.phase == "both":
            changed = changed._replace(old_queue=world.old_queue + 1)
        return changed

    # A new generation, and the switch -----------------------------------------------------------

    def _begin(self, world: World) -> Steps:
        if world.phase == "one":
            # Its scan may be cut off: then the switch's own is the first one.
            yield "alter: makes a new generation", world._replace(phase="both")

    def _switch(self, world: World) -> Steps:
        if world.phase != "both":
            return
        if world.switch != "idle":
            yield "switch: gives up or is killed", _released(world)
        if world.switch == "idle":
            scanned = _caught_up(world) if self.scan_before_the_switch else world
            yield "switch: queues what is missing", scanned._replace(switch="scanned")
        elif world.switch == "scanned" and world.old_worker == IDLE:
            held = world._replace(held=world.old_queue, old_queue=0, switch="holding")
            yield "switch: holds the old queue", held
        elif world.switch == "holding" and not self._writes(world):
            yield "switch: locks both generations", world._replace(switch="locked")
        elif world.switch == "locked":
            yield self._exchange(world)

    def _writes(self, world: World) -> bool:
        workers = (world.old_worker, world.new_worker)
        return self.lock_generations and any(worker.at in WRITING for worker in workers)

    def _is_free(self, world: World) -> bool:
        return world.switch != "locked" or not self.lock_generations

    def _exchange(self, world: World) -> tuple[str, World]:
        waits = world.new_bulk + world.new_worker.bulk
        lacks = world.old > 0 and world.source > 0 and world.new == NOTHING
        if (self.wait_for_bulk and waits) or (self.compare_ledgers and lacks):
            return "switch: is too early", _released(world)
        left = world.held + world.old_queue if self.take_over_queue else 0
        return "switch: commits", world._replace(
            phase="switched",
            switch="idle",
            held=0,
            old_queue=0,
            new_changes=world.new_changes + left,
            behind=_is_behind(world),
        )

    # The workers ------------------------------------------------------------------------------

    def _old_worker(self, world: World) -> Steps:
        worker = world.old_worker
        if worker.at == "idle" and world.old_queue and world.phase != "switched":
            claimed = Worker("claimed", changes=world.old_queue)
            claimed = claimed._replace(sees_successor=world.phase == "both")
            yield "old: claims", world._replace(old_worker=claimed, old_queue=0)
        elif worker.at != "idle":
            yield from self._crash(world, "old", _given_back(world))
            for name, changed in self._old_claim(world, worker):
                yield f"old: {name}", changed

    def _old_claim(self, world: World, worker: Worker) -> Steps:
        if worker.at == "claimed":
            read = worker._replace(at="read", read=world.source)
            yield "reads and embeds", world._replace(old_worker=read)
        elif worker.at == "read" and world.phase == "switched":
            yield "finds its pipeline gone", _given_back(world)
        elif worker.at == "read":
            if self._is_free(world):
                yield "has the lock", world._replace(old_worker=worker._replace(at="locked"))
        elif worker.at == "locked":
            checked = _rechecked(world, worker)._replace(at="checked")
            yield "re-checks", world._replace(old_worker=checked)
        elif worker.at == "checked":
            sees = world.phase == "both" if self.look_after_the_recheck else worker.sees_successor
            looked = worker._replace(at="looked", sees_successor=sees)
            yield "looks for a successor", world._replace(old_worker=looked)
        else:
            yield "commits", self._old_commit(world, worker)

    def _old_commit(self, world: World, worker: Worker) -> World:
        world = world._replace(old_worker=IDLE)
        if worker.requeue:
            return world._replace(old_queue=world.old_queue + 1)
        world = world._replace(old=worker.read)
        if self.hand_on and worker.sees_successor:
            world = world._replace(new_bulk=world.new_bulk + 1)
        return world

    def _new_worker(self, world: World) -> Steps:
        worker = world.new_worker
        if worker.at == "idle":
            if world.new_changes:
                claimed = Worker("claimed", changes=world.new_changes)
                yield "new: claims changes", world._replace(new_worker=claimed, new_changes=0)
            elif world.new_bulk:
                claimed = Worker("claimed", bulk=world.new_bulk)
                yield "new: claims bulk", world._replace(new_worker=claimed, new_bulk=0)
            return
        yield from self._crash(
            world,
            "new",
            world._replace(
                new_worker=IDLE,
                new_changes=world.new_changes + worker.changes,
                new_bulk=world.new_bulk + worker.bulk,
            ),
        )
        for name, changed in self._new_claim(world, worker):
            yield f"new: {name}", changed

    def _new_claim(self, world: World, worker: Worker) -> Steps:
        if worker.at == "claimed":
            read = worker._replace(at="read", read=world.source)
            yield "reads and embeds", world._replace(new_worker=read)
        elif worker.at == "read" and self._is_free(world):
            yield "has the lock", world._replace(new_worker=worker._replace(at="locked"))
        elif worker.at == "locked":
            checked = _rechecked(world, worker)._replace(at="looked")
            yield "re-checks", world._replace(new_worker=checked)
        elif worker.at == "looked":
            yield "commits", self._new_commit(world, worker)

    def _new_commit(self, world: World, worker: Worker) -> World:
        world = world._replace(new_worker=IDLE)
        if not worker.requeue:
            return world._replace(new=worker.read)
        if worker.bulk and self.requeue_keeps_priority:
            return world._replace(new_bulk=world.new_bulk + 1)
        return world._replace(new_changes=world.new_changes + 1)

    def _crash(self, world: World, name: str, after: World) -> Steps:
        if world.crashes_left:
            yield f"{name}: crashes", after._replace(crashes_left=world.crashes_left - 1)


def _is_about(settled: int, source: int) -> bool:
    """Return whether the ledger row, or that there is none, is as it should be for the source."""
    return settled == source if source > 0 else settled <= NOTHING


def _is_behind(world: World) -> bool:
    """Return whether searches would see less of the record, or older text, than before."""
    have_both_nothing = world.old <= NOTHING and world.new <= NOTHING
    is_older = abs(world.new) < abs(world.old) and not have_both_nothing
    return is_older and not _is_about(world.new, world.source)


def _rechecked(world: World, worker: Worker) -> Worker:
    """Return the worker with what it settles: what it read, or that the record is gone by now."""
    requeue = world.source > 0 and worker.read != world.source
    return worker._replace(requeue=requeue, read=world.source)


def _enqueued(world: World) -> World:
    """An enqueue: what the generation that has the name has not settled, or has in flight."""
    world = world._replace(scan_due=False)
    if world.phase == "switched":
        due = not _is_about(world.new, world.source) or world.new_worker != IDLE
        return world._replace(new_bulk=world.new_bulk + due)
    due = not _is_about(world.old, world.source) or world.old_worker != IDLE
    return world._replace(old_queue=world.old_queue + due)


def _caught_up(world: World) -> World:
    """Queue for the new generation what the old one knows and it has not, or has in flight."""
    in_queue = world.new_changes + world.new_bulk
    is_due = not _is_about(world.new, world.source) or world.new_worker != IDLE
    is_known = world.old > 0 if world.source > 0 else world.new > 0 or world.new_worker != IDLE
    return world._replace(new_bulk=world.new_bulk + (is_known and is_due and not in_queue))


def _released(world: World) -> World:
    return world._replace(switch="idle", held=0, old_queue=world.old_queue + world.held)


def _given_back(world: World) -> World:
    """The old worker's items are free again, or the next generation's if there is no other."""
    items = world.old_worker.changes
    world = world._replace(old_worker=IDLE)
    if world.phase == "switched":
        return world._replace(new_changes=world.new_changes + items)
    return world._replace(old_queue=world.old_queue + items)
