"""The memory of a model on a machine: read for some days, if this program has written it."""

from __future__ import annotations

import fcntl
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgqueue_embed.embedding import learnt
from pgqueue_embed.embedding.learnt import KEPT_SECONDS, Learnt, Memory
from pgqueue_embed.errors import UsageError
from pgqueue_embed.local_server import default

SOMETHING = Learnt(
    variant="fp32, oneDNN",
    rates={"fp32": 1.5, "fp32, oneDNN": 2.5},
    refused=["bf16 weights"],
    is_confirmed=True,
    batch_tokens=512,
)


def test_what_is_kept_is_recalled_and_others_stay(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "new folder")
    assert memory.recall("a") is None
    memory.keep("a", SOMETHING)
    memory.keep("b", replace(SOMETHING, batch_tokens=None))
    assert memory.recall("a") == SOMETHING
    assert memory.recall("b") == replace(SOMETHING, batch_tokens=None)
    names = sorted(file.name for file in (tmp_path / "new folder").iterdir())
    assert names == ["batch-sizes.json", "batch-sizes.lock"]


@pytest.mark.parametrize("age", [KEPT_SECONDS + 60, -60.0])
def test_after_some_days_it_is_learnt_anew(tmp_path: Path, age: float) -> None:
    memory = Memory(tmp_path)
    memory.keep("a", replace(SOMETHING, learnt_at=time.time() - age))
    assert memory.recall("a") is None


def test_a_folder_that_cannot_be_made_keeps_nothing_and_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file" / "cache")
    memory.keep("a", SOMETHING)
    assert memory.recall("a") is None


@pytest.mark.parametrize(
    "changed",
    [
        *({"batch_tokens": size} for size in (0, -1, 10**12, 513, 1.0, True, "512")),
        *({"rates": each} for each in ({"fp32": "fast"}, {"fp32": -1.0}, {"fp32": 0.0}, [1.0], 3)),
        *({"variant": each} for each in (None, 3, ["fp32"])),
        {"refused": [3]},
        {"refused": 3},
        {"is_confirmed": 1},
        {"learnt_at": "now"},
        {"more": 1},
    ],
    ids=str,
)
def test_what_this_program_does_not_write_is_not_taken_from_the_file(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    memory = Memory(tmp_path)
    memory.keep("a", SOMETHING)
    memory.keep("b", SOMETHING)
    file = tmp_path / "batch-sizes.json"
    known = json.loads(file.read_text())
    known["a"].update(changed)
    file.write_text(json.dumps({**known, "old": 1_024}))
    assert memory.recall("a") is None
    assert memory.recall("old") is None
    assert memory.recall("b") == SOMETHING
    memory.keep("c", SOMETHING)
    assert memory.recall("c") == SOMETHING


def test_what_another_process_has_refused_meanwhile_stays_refused(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    told = replace(SOMETHING, variant="fp32", refused=["bf16 weights"])
    memory.keep("a", told)
    memory.keep("a", replace(SOMETHING, variant="bf16 weights", refused=[], batch_tokens=1_024))
    assert memory.recall("a") == told
    memory.keep("a", replace(SOMETHING, refused=["bf16"]))
    assert memory.recall("a") == replace(SOMETHING, refused=["bf16", "bf16 weights"])


def test_who_was_stopped_with_the_file_in_hand_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(learnt, "_BETWEEN_TRIES_SECONDS", 0.0)
    with (tmp_path / "batch-sizes.lock").open("w") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        Memory(tmp_path).keep("a", SOMETHING)
    assert Memory(tmp_path).recall("a") == SOMETHING


def test_the_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(learnt, "_cache_folder", lambda: tmp_path)
    Memory().keep("a", SOMETHING)
    assert Memory(tmp_path).recall("a") == SOMETHING


def homeless(*_: object, **__: object) -> Path:
    raise RuntimeError("could not determine the home directory")


def test_a_user_without_a_home_learns_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", homeless)
    Memory().keep("a", SOMETHING)
    assert Memory().recall("a") is None


def test_a_user_without_a_home_is_told_to_name_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_data_path", homeless)
    monkeypatch.delenv(default.HOME_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=default.HOME_VARIABLE):
        default.default_home()
