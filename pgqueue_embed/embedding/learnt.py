"""The memory of what a machine has learnt of a model: in the user's cache folder, for some days.

That is which variant is the fastest, and how large its batches should be. Both depend on the
device, the model, torch and the number of threads, which the key of an entry names. The file may
hold anything.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pgqueue_embed.embedding.references import References
from pgqueue_embed.embedding.shapes import SIZES
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_json
from pgqueue_embed.whole_file import replacing

# Some thousand models, devices and hosts.
MOST_BYTES = 1024**2

# A machine that was busy may be idle, or another one, by then.
KEPT_SECONDS = 7 * 24 * 3600.0

# Five seconds; who was stopped with the lock in hand has it for ever.
_TRIES, _BETWEEN_TRIES_SECONDS = 500, 0.01


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Of one model, on one device, for one precision that was asked for.

    ``variant`` is the name of the one that was chosen, ``rates`` are those of the probe by name,
    and ``refused`` names those whose canaries did not agree. With ``is_confirmed`` real batches
    were faster in it than in the next one; ``batch_tokens`` is None until they have told.
    """

    variant: str
    rates: Mapping[str, float] = field(default_factory=dict)
    refused: Sequence[str] = ()
    is_confirmed: bool = False
    batch_tokens: int | None = None
    learnt_at: float = field(default_factory=time.time)

    @property
    def is_old(self) -> bool:
        """Whether it is to be learnt anew."""
        return not 0 <= time.time() - self.learnt_at <= KEPT_SECONDS


class Memory:
    """The file ``batch-sizes.json`` in a folder, the user's cache folder by default.

    With ``anew`` nothing is recalled that was kept before. A folder that cannot be written costs
    what there is to learn at each start, and no more.
    """

    def __init__(self, folder: Path | None = None, *, anew: bool = False) -> None:
        self._folder = folder or _cache_folder()
        self._anew = anew

    def recall(self, key: str) -> Learnt | None:
        """Return what was learnt in the last days; None where nothing was."""
        learnt = None if self._anew else self._read().get(key)
        return None if learnt is None or learnt.is_old else learnt

    def refused(self, key: str) -> Sequence[str]:
        """Return what was refused in the last days, though all else be learnt anew.

        A user's text may have told, of which no probe and no canary tells.
        """
        learnt = self._read().get(key)
        return () if learnt is None or learnt.is_old else learnt.refused

    def references(self, key: str) -> References | None:
        """Return the file of known texts' vectors of one model; None with ``anew``."""
        return None if self._anew else References(self._folder, key, KEPT_SECONDS)

    def keep(self, key: str, learnt: Learnt) -> None:
        """Keep what was learnt, in the place of what was known, but for what was refused."""
        with self._turn():
            known = {each: kept for each, kept in self._read().items() if not kept.is_old}
            self._write({**known, key: _together(known.get(key), learnt)})

    @property
    def _file(self) -> Path:
        return self._folder / "batch-sizes.json"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one process of this machine write at a time; where no file can be, none does.

        One that holds the lock for long was stopped: without it, what it keeps may be lost.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "batch-sizes.lock").open("w")
        except OSError:
            yield
            return
        with lock:
            for _ in range(_TRIES):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_BETWEEN_TRIES_SECONDS)
                except OSError:  # a network file system may know no locks
                    break
            yield

    def _read(self) -> dict[str, Learnt]:
        """Return all that is known; nothing where the file is absent or not ours."""
        try:
            known = read_json(self._file, MOST_BYTES)
        except (OSError, UnreadableFile):
            return {}
        if not isinstance(known, dict):
            return {}
        entries = {key: _entry(found) for key, found in known.items()}
        return {key: entry for key, entry in entries.items() if entry is not None}

    def _write(self, known: Mapping[str, Learnt]) -> None:
        content = json.dumps({key: asdict(each) for key, each in known.items()}, indent=1)
        with suppress(OSError), replacing(self._file) as new:
            new.write(f"{content}\n".encode())


def _together(known: Learnt | None, learnt: Learnt) -> Learnt:
    """Return what is to be kept, where another process may have told of the same meanwhile.

    A text has refused a variant there: that is no less true for who has not met such a text.
    """
    if known is None or set(known.refused) <= set(learnt.refused):
        return learnt
    if learnt.variant in known.refused:
        return known
    return replace(learnt, refused=sorted({*known.refused, *learnt.refused}))


def _entry(found: Any) -> Learnt | None:
    """Return an entry of the file, or None for one that this program has not written."""
    try:
        entry = Learnt(**found)
        rates = [*entry.rates.values(), entry.learnt_at]
        is_own = (
            all(type(rate) is float and math.isfinite(rate) and rate > 0 for rate in rates)
            and all(type(name) is str for name in (entry.variant, *entry.refused))
            and type(entry.is_confirmed) is bool
            # A size decides about memory: no other is ever found.
            and (entry.batch_tokens is None or type(entry.batch_tokens) is int)
            and (entry.batch_tokens is None or entry.batch_tokens in SIZES)
        )
    except (TypeError, AttributeError):
        return None
    return entry if is_own else None


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    try:
        return user_cache_path("pgembed")
    except RuntimeError:  # a user without a home, as in some containers
        return Path(os.devnull) / "pgembed"
