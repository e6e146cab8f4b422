"""The choice of a batch size: on a clock of the test's own, and on a real model."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue_embed.embedding import EmbeddingModel, calibrate, calibration, resolve_model
from pgqueue_embed.embedding.calibration import Turns, best_size, is_steady, time_sizes
from pgqueue_embed.embedding.shapes import TABLE_LOOK_UP, limits_for
from tests.support.models import bundled_model, make_table_model

SIZES = (512, 1_024, 2_048)
STEADY = {512: [0.2] * 5, 1_024: [0.5, 0.21, 0.2], 2_048: [0.4] * 4}  # 1,024 is the fastest
BUSY = {512: [0.2, 0.3, 0.3], 1_024: [0.2, 0.4, 0.9], 2_048: [0.2, 0.5, 0.4]}


class Machine:
    """A device whose passes take the seconds that a test says, by a clock of its own."""

    def __init__(self, seconds: dict[int, list[float]]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.passes: list[int] = []

    def forward(self, size: int) -> None:
        turn = self.passes.count(size)
        self.passes.append(size)
        durations = self.seconds[size]
        self.now += durations[min(turn, len(durations) - 1)]

    def times(self) -> Turns:
        return time_sizes(SIZES, self.forward, device="cpu", clock=lambda: self.now)


def test_sizes_take_turns() -> None:
    machine = Machine({512: [0.9, 0.1], 1_024: [0.1, 0.3, 0.2], 2_048: [0.2]})
    assert machine.times()[1_024][:3] == pytest.approx([0.1, 0.3, 0.2])
    assert machine.passes[:6] == [*SIZES, *SIZES]


def test_slow_model_is_not_timed_for_longer_than_the_budget() -> None:
    machine = Machine({512: [2.0], 1_024: [4.0], 2_048: [8.0]})
    assert machine.times() == {512: [2.0], 1_024: [4.0]}


def test_size_that_does_not_fit_memory_is_no_candidate() -> None:
    machine = Machine({512: [0.1], 1_024: [0.1], 2_048: [0.1]})

    def forward(size: int) -> None:
        if size >= 1_024:
            raise RuntimeError("MPS backend out of memory")
        machine.forward(size)

    times = time_sizes(SIZES, forward, device="cpu", clock=lambda: machine.now)
    assert list(times) == [512]


def test_memory_too_small_for_every_size_leaves_the_halving_to_the_device_thread() -> None:
    def forward(size: int) -> None:
        raise RuntimeError("MPS backend out of memory")

    assert best_size(time_sizes(SIZES, forward, device="cpu"), smallest=512) == 512


def test_other_faults_of_the_device_are_raised() -> None:
    def forward(size: int) -> None:
        raise RuntimeError("kernel missing")

    with pytest.raises(RuntimeError, match="kernel missing"):
        time_sizes(SIZES, forward, device="cpu")


def test_smallest_size_wins_within_noise() -> None:
    assert best_size({512: [0.60], 1_024: [1.01], 2_048: [2.0]}, smallest=256) == 1_024
    assert best_size({512: [0.50], 1_024: [1.01], 2_048: [2.0]}, smallest=256) == 512
    assert best_size({512: [0.60], 1_024: [1.20], 2_048: [2.0]}, smallest=256) == 2_048


def test_shortest_time_counts_since_the_first_pass_prepares_a_shape() -> None:
    assert best_size({512: [9.0, 0.5], 1_024: [1.2, 1.2]}, smallest=256) == 512


@pytest.mark.parametrize(
    ("turns", "steady"),
    [
        ({512: [0.9, 0.1, 0.1], 1_024: [0.2, 0.21, 0.2]}, True),
        ({512: [0.1, 0.1, 0.1], 1_024: [0.2, 0.4, 0.4]}, False),
        ({512: [0.1, 0.4]}, True),
        ({}, True),
    ],
)
def test_times_are_steady_unless_half_of_them_are_much_longer_than_the_shortest(
    turns: Turns, steady: bool
) -> None:
    assert is_steady(turns) is steady


@pytest.fixture
def model() -> Iterator[EmbeddingModel]:
    shared = bundled_model()
    usual = shared.limits
    yield shared
    shared.limits = usual


class TestRealModel:
    """Found once, kept in a file, and never a reason to fail."""

    def test_size_is_measured_once_and_read_afterwards(
        self, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibration, "time_model", lambda model: STEADY)
        assert calibrate(model, folder=tmp_path)
        assert json.loads((tmp_path / "batch-sizes.json").read_text()).popitem()[1] == 1_024
        assert model.limits == limits_for("cpu").resized(1_024)
        monkeypatch.setattr(calibration, "time_model", pytest.fail)
        model.limits = limits_for("cpu")
        assert calibrate(model, folder=tmp_path)
        assert model.limits == limits_for("cpu").resized(1_024)
        monkeypatch.setattr(calibration, "time_model", lambda model: {8_192: [1.0]})
        assert calibrate(model, anew=True, folder=tmp_path)
        assert model.limits.max_tokens_per_batch == 8_192

    def test_size_found_on_a_busy_machine_is_used_and_not_kept(
        self, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibration, "time_model", lambda model: BUSY)
        assert not calibrate(model, folder=tmp_path)
        assert model.limits.max_tokens_per_batch == 2_048
        assert not (tmp_path / "batch-sizes.json").exists()

    def test_size_found_on_a_busy_machine_replaces_none(
        self, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibration, "time_model", lambda model: STEADY)
        calibrate(model, folder=tmp_path)
        monkeypatch.setattr(calibration, "time_model", lambda model: BUSY)
        assert not calibrate(model, anew=True, folder=tmp_path)
        assert model.limits.max_tokens_per_batch == 1_024
        assert calibrate(model, folder=tmp_path)

    def test_real_passes_are_timed(self, model: EmbeddingModel, tmp_path: Path) -> None:
        calibrate(model, folder=tmp_path)
        assert model.limits.max_tokens_per_batch in calibration.CANDIDATES["cpu"]

    @pytest.mark.parametrize("content", ["", "[]", '{"x": "y"}', "\x00"])
    def test_unreadable_file_is_replaced(
        self,
        model: EmbeddingModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        content: str,
    ) -> None:
        (tmp_path / "batch-sizes.json").write_text(content)
        monkeypatch.setattr(calibration, "time_model", lambda model: {2_048: [1.0]})
        calibrate(model, folder=tmp_path)
        assert model.limits.max_tokens_per_batch == 2_048
        (size,) = json.loads((tmp_path / "batch-sizes.json").read_text()).values()
        assert size == 2_048
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "batch-sizes.json",
            "batch-sizes.lock",
        ]

    def test_key_names_what_a_size_depends_on(
        self, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibration, "time_model", lambda model: {512: [1.0]})
        calibrate(model, folder=tmp_path)
        (key,) = json.loads((tmp_path / "batch-sizes.json").read_text())
        for part in (socket.gethostname(), "fp32", model.fingerprint.digest, "torch"):
            assert part in key

    def test_folder_that_cannot_be_made_costs_a_measurement_only(
        self, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(calibration, "time_model", lambda model: {512: [1.0]})
        calibrate(model, folder=tmp_path / "file" / "cache")
        assert model.limits.max_tokens_per_batch == 512

    def test_table_look_up_is_not_calibrated(self, tmp_path: Path) -> None:
        model = EmbeddingModel.load(resolve_model(str(make_table_model(tmp_path / "model"))))
        calibrate(model, folder=tmp_path / "cache")
        assert model.limits == TABLE_LOOK_UP
        assert not (tmp_path / "cache").exists()
