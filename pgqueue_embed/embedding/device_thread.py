"""One thread owns the model: it loads it, checks it, and launches every forward pass.

Metal aborts the process when two threads enter it. Worker loops hand over chunks and wait; the
thread computes first what is due first: when an idle device would be done with it. Claims of one
size are so computed one after the other, and one is written while the next is on the device; in
turns, all would end at once and leave it idle. Small claims overtake a large one, until it has
waited for as long as it computes. A device has a few batches before the thread waits for the first,
and is given the next before it has none: a GPU one after the other, a CPU one on each core.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.batch_runner import BatchRunner, Model, Pass, RowNumbers
from pgqueue_embed.embedding.embedded import Embedded
from pgqueue_embed.embedding.rows import NonFiniteVectors, Vectors, WrongVectors
from pgqueue_embed.embedding.shapes import Batch, plan_batches
from pgqueue_embed.embedding.vector_cache import VectorCache
from pgqueue_embed.errors import ModelError

CACHE_BYTES = 256 << 20
CLOSE_SECONDS = 10.0
CHECK_TOKENS = 64

LoadedModel = TypeVar("LoadedModel", bound=Model)


class _Call:
    """The chunks of one caller on their way; its fields are guarded by the thread's condition."""

    def __init__(self, chunks: Sequence[Chunk], batches: Sequence[Batch], dimensions: int) -> None:
        self.chunks = chunks
        self.batch_tokens = 0
        self.tokens = 0
        self.batches = deque(batches)
        self.unfinished = len(batches)
        self.vectors = np.zeros((len(chunks), dimensions), np.float32)
        self.computed: set[int] = set()
        self.unusable: set[int] = set()
        self.error: Exception | None = None
        self.device_seconds = 0.0
        self.fp32_chunks = 0
        self.due_tokens = 0
        self.started = time.monotonic()

    @property
    def is_done(self) -> bool:
        return self.unfinished == 0 or self.error is not None

    def store(self, rows: RowNumbers, vectors: Vectors | None) -> None:
        if vectors is None:
            self.unusable.update(rows)
        else:
            self.vectors[list(rows)] = vectors
            self.computed.update(rows)


@dataclass(frozen=True, kw_only=True)
class _Launched:
    """A batch of a call that the device computes, or will once it is done with those before."""

    call: _Call
    passes: Sequence[Pass]
    started: float

    @property
    def is_due(self) -> bool:
        """Whether to read it: it waits for nothing, or nothing else tells when it does."""
        return all(each.done is None or each.done.done() for each in self.passes)


class DeviceThread(Generic[LoadedModel]):
    """Starts at once and loads the model with ``load``; safe to use from many threads.

    ``batches_completed`` and ``last_progress_monotonic`` tell a watchdog whether the device
    still answers; ``cache`` holds the vectors of chunks embedded before; ``busy_seconds`` are those
    in which the device has computed. ``on_batch_size`` is called in it once the calls have told how
    many tokens a batch of the model should have.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        *,
        cache_bytes: int = CACHE_BYTES,
        on_batch_size: Callable[[LoadedModel, int], None] = lambda _model, _tokens: None,
    ) -> None:
        self.batches_completed = 0
        self.busy_seconds = 0.0
        self.last_progress_monotonic = time.monotonic()
        self.cache = VectorCache(cache_bytes)
        self._load = load
        self._on_batch_size = on_batch_size
        self._condition = threading.Condition()
        self._waiting: list[_Call] = []  # calls with batches left
        self._taken_tokens = 0
        self._active: set[_Call] = set()
        self._checks: deque[Future[None]] = deque()
        self._asked: dict[Future[None], float] = {}  # when, of each check that is not over
        self._loaded: tuple[LoadedModel, BatchRunner] | None = None
        self._longest = 0
        self._last_end = 0.0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pgembed-device", daemon=True)
        self._thread.start()

    @property
    def model(self) -> LoadedModel:
        """The model, waiting until it is loaded; raises what its loading raised."""
        return self._when_loaded()[0]

    def embed(
        self,
        chunks: Sequence[Chunk],
        *,
        on_progress: Callable[[], None] = lambda: None,
        anew: bool = False,
    ) -> Embedded:
        """Embed chunks, each distinct text once, and wait for their vectors.

        With ``anew`` the cache is not asked, and what it had is replaced.
        ``on_progress`` is called in this thread after every batch that the device completes, of
        any caller; what it raises ends the call. Raises NonFiniteVectors naming the chunks the
        model has no vector for (all others are in the cache by then), ModelError where the
        device or its memory fails, and whatever else a batch of this call raised.
        """
        keys = [VectorCache.key(chunk.text) for chunk in chunks]
        distinct = dict(zip(reversed(keys), reversed(chunks), strict=True))
        found = {key: None if anew else self.cache.get(key) for key in distinct}
        missing = [key for key, vector in found.items() if vector is None]
        seen = self.batches_completed
        call = self._submit([distinct[key] for key in missing])
        try:
            self._wait(call, seen, on_progress)
        finally:
            self._withdraw(call)
            self._remember(call, missing)
        if call.unusable:
            bad = {missing[row] for row in call.unusable}
            rows = tuple(row for row, key in enumerate(keys) if key in bad)
            raise NonFiniteVectors(
                rows,
                self.model.precision,
                device_seconds=call.device_seconds,
                fp32_chunks=call.fp32_chunks,
            )
        computed = dict(zip(missing, call.vectors, strict=True))
        vectors = np.empty((len(keys), call.vectors.shape[1]), np.float32)
        for row, key in enumerate(keys):
            vectors[row] = computed[key] if key in computed else found[key]
        hits = len(keys) - len(missing)
        return Embedded(
            vectors=vectors,
            cache_hits=hits,
            device_seconds=call.device_seconds,
            fp32_chunks=call.fp32_chunks,
        )

    def stalled_seconds(self) -> float:
        """Return for how long callers have waited without any progress of the device."""
        with self._condition:
            waiting = [*(call.started for call in self._active), *self._asked.values()]
            if not waiting:
                return 0.0
            since = max(self.last_progress_monotonic, min(waiting))
        return time.monotonic() - since

    def verify(self) -> None:
        """Compute the model's canaries on the device and wait for the outcome.

        Raises ModelError if they come out wrong or not at all: then the device is at fault, and
        not what it was given to compute.
        """
        self._when_loaded()
        check: Future[None] = Future()
        with self._condition:
            if self._error is not None:
                raise self._error
            self._checks.append(check)
            self._asked[check] = time.monotonic()
            self._condition.notify_all()
        try:
            check.result()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the device fails its self-test: {error}") from error
        finally:
            with self._condition:
                del self._asked[check]

    def close(self) -> None:
        """Stop the thread; calls that still wait raise ModelError."""
        self._stop(ModelError("the device thread is closed"))
        self._thread.join(CLOSE_SECONDS)

    def _when_loaded(self) -> tuple[LoadedModel, BatchRunner]:
        with self._condition:
            while self._loaded is None and self._error is None:
                self._condition.wait()
            if self._loaded is None or self._error is not None:
                raise self._error or ModelError("the model is not loaded")
            return self._loaded

    def _submit(self, chunks: Sequence[Chunk]) -> _Call:
        model, runner = self._when_loaded()
        lengths = [model.sequence_tokens(chunk) for chunk in chunks]
        with self._condition:
            longest = self._longest = max([self._longest, *lengths])
            beside = len(self._active)
        # Planned without the lock, which the device needs to get on with the calls of others.
        limits = runner.planned_for(sum(lengths), beside=beside)
        batches = plan_batches(lengths, limits, longest=longest)
        call = _Call(chunks, batches, model.dimensions)
        call.batch_tokens, call.tokens = limits.max_tokens_per_batch, sum(lengths)
        with self._condition:
            call.error = self._error
            self._active.add(call)
            call.due_tokens = self._taken_tokens + sum(batch.tokens for batch in batches)
            if batches:
                self._waiting.append(call)
                self._condition.notify_all()
        return call

    def _wait(self, call: _Call, seen: int, on_progress: Callable[[], None]) -> None:
        while not call.is_done:
            before, seen = seen, self._await_batch(call, seen)
            if seen != before and call.error is None:
                on_progress()
        if call.error is not None:
            raise call.error

    def _await_batch(self, call: _Call, seen: int) -> int:
        with self._condition:
            self._condition.wait_for(lambda: call.is_done or self.batches_completed != seen)
            return self.batches_completed

    def _withdraw(self, call: _Call) -> None:
        with self._condition:
            self._active.discard(call)
            if call in self._waiting:
                self._waiting.remove(call)

    def _remember(self, call: _Call, keys: Sequence[bytes]) -> None:
        with self._condition:
            computed = list(call.computed)
        for row in computed:
            self.cache.put(keys[row], call.vectors[row])

    def _run(self) -> None:
        try:
            model = self._load()
            runner = BatchRunner(model)
            with self._condition:
                self._loaded = (model, runner)
                self._condition.notify_all()
            with model.session():
                self._work(model, runner)
        except Exception as error:  # noqa: BLE001 - callers get it; this thread has no caller
            self._stop(error)

    def _work(self, model: Model, runner: BatchRunner) -> None:
        """Launch batches ahead of those that are read, until this thread is stopped."""
        ahead: deque[_Launched] = deque()
        while self._has_job(runner, ahead):
            if check := self._take_check():
                _check(check, model)
            elif len(ahead) < runner.batches_ahead and (taken := self._take()):
                ahead.append(self._launch(runner, *taken))
            else:
                for _ in range(min(len(ahead), runner.reads_at_once)):
                    self._read(model, runner, ahead.popleft())

    def _has_job(self, runner: BatchRunner, ahead: Sequence[_Launched]) -> bool:
        """Wait for something to launch, to read or to check; returns False once it is over.

        What comes while passes are under way does not wait for them where others have room.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    (ahead and ahead[0].is_due)
                    or (self._waiting and len(ahead) < runner.batches_ahead)
                    or self._checks
                    or self._error is not None
                )
            )
            return self._error is None

    def _take_check(self) -> Future[None] | None:
        with self._condition:
            return self._checks.popleft() if self._checks else None

    def _take(self) -> tuple[_Call, Batch] | None:
        """Return the batch that is due first, if one waits."""
        with self._condition:
            if not self._waiting:
                return None
            call = min(self._waiting, key=lambda call: call.due_tokens)
            batch = call.batches.popleft()
            self._taken_tokens += batch.tokens
            if not call.batches:
                self._waiting.remove(call)
            return call, batch

    def _launch(self, runner: BatchRunner, call: _Call, batch: Batch) -> _Launched:
        started, passes = time.monotonic(), list[Pass]()
        with self._charging(call):
            passes.extend(runner.launch(call.chunks, batch))
        for each in passes:
            if each.done is not None:
                each.done.add_done_callback(self._wake)
        return _Launched(call=call, passes=passes, started=started)

    def _wake(self, _done: Future[Any]) -> None:
        with self._condition:
            self._condition.notify_all()

    def _read(self, model: Model, runner: BatchRunner, launched: _Launched) -> None:
        call, before = launched.call, model.chunks_in_fp32
        with self._charging(call):
            for each in launched.passes:
                for rows, vectors in runner.finish(call.chunks, each):
                    self._progress(call, rows, vectors)
        call.fp32_chunks += model.chunks_in_fp32 - before
        self._end_batch(launched)
        self._learn_from(call)

    @contextmanager
    def _charging(self, call: _Call) -> Iterator[None]:
        """Make an error of a batch its caller's alone, but not that of a device at fault."""
        try:
            yield
        except WrongVectors:
            raise
        except Exception as error:  # noqa: BLE001 - raised in the caller's own thread
            with self._condition:
                call.error = call.error or error
                if call in self._waiting:
                    self._waiting.remove(call)

    def _end_batch(self, launched: _Launched) -> None:
        """Account for a batch: the device had it as soon as the one before had ended."""
        call, began = launched.call, max(launched.started, self._last_end)
        self._last_end = time.monotonic()
        with self._condition:
            call.device_seconds += self._last_end - began
            self.busy_seconds += self._last_end - began
            call.unfinished -= 1
            self._condition.notify_all()

    def _learn_from(self, call: _Call) -> None:
        """Let a call that was computed as a whole tell how large batches should be."""
        model, runner = self._when_loaded()
        if call.unfinished or call.error is not None:
            return
        best = runner.learn(call.batch_tokens, call.tokens, call.device_seconds)
        if best is not None:
            self._on_batch_size(model, best)

    def _progress(self, call: _Call, rows: RowNumbers, vectors: Vectors | None) -> None:
        with self._condition:
            call.store(rows, vectors)
            self.batches_completed += 1
            self.last_progress_monotonic = time.monotonic()
            self._condition.notify_all()

    def _stop(self, error: Exception) -> None:
        with self._condition:
            self._error = self._error or error
            for call in self._active:
                call.error = call.error or self._error
            while self._checks:
                self._checks.popleft().set_exception(self._error)
            self._condition.notify_all()


def _check(check: Future[None], model: Model) -> None:
    """Verify a small shape, whatever the kind of device."""
    try:
        model.verify(1, CHECK_TOKENS)
    except Exception as error:  # noqa: BLE001 - it is the asker's to judge
        check.set_exception(error)
    else:
        check.set_result(None)
