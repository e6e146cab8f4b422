"""The device and precision that are taken, by what a machine says it has."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from pgqueue_embed.doctor.check import Mark, guarded_checks
from pgqueue_embed.doctor.machine import check_machine
from pgqueue_embed.embedding import precision
from pgqueue_embed.embedding.devices import (
    choose_device,
    configure_device,
    describe_processor,
    device_memory_bytes,
    is_out_of_memory,
    release_memory,
)
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY
from pgqueue_embed.embedding.opening import open_network
from pgqueue_embed.embedding.resolve import ResolvedModel
from pgqueue_embed.errors import ModelError, UsageError
from tests.support.libraries import torch


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The accelerators this machine claims to have; add to it."""
    there: set[str] = set()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 if "cuda" in there else 0)
    return there


@pytest.mark.parametrize(("has", "chosen"), [(set(), "cpu"), ({"cuda"}, "cuda"), ({"mps"}, "mps")])
def test_auto_takes_the_fastest_device(machine: set[str], has: set[str], chosen: str) -> None:
    machine.update(has)
    assert choose_device("auto") == chosen


def test_a_device_of_the_machine_can_be_asked_for(machine: set[str]) -> None:
    machine.add("cuda")
    assert [choose_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda", "cuda:0", "cpu"]


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:0"])
def test_an_absent_device_is_refused_with_the_way_out(machine: set[str], name: str) -> None:
    with pytest.raises(UsageError, match=r"no .* device; give --device auto or cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "cuda:x", "mps:0", ""])
def test_an_unknown_device_is_refused(machine: set[str], name: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose_device(name)


def test_metal_is_kept_below_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", fractions.append)
    configure_device("mps")
    configure_device("cpu")
    assert fractions == [0.6]


def test_memory_is_asked_of_the_driver_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 123)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    assert device_memory_bytes("mps") == 123
    assert device_memory_bytes("cpu") == 0
    release_memory("mps")
    release_memory("cpu")
    assert emptied == ["mps"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.99 GB)"), True),
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a must match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_known_by_its_text(error: Exception | str, answer: bool) -> None:
    """A string is that of torch's own error."""
    error = torch.OutOfMemoryError(error) if isinstance(error, str) else error
    assert is_out_of_memory(error) is answer


def test_auto_tries_all_that_a_device_may_compute_in_and_a_precision_its_own_ways() -> None:
    of_gpu = ["fp32", "fp16 by autocast", "bf16 by autocast", "fp16 weights", "bf16 weights"]
    for device in ("mps", "cuda:1"):
        assert list(map(str, precision.candidates(device, "auto"))) == of_gpu
    of_cpu = ["fp32", "fp32, oneDNN", "bf16 by autocast", "bf16 weights", "bf16 weights, oneDNN"]
    assert list(map(str, precision.candidates("cpu", "auto"))) == of_cpu
    assert list(map(str, precision.candidates("cpu", "fp32"))) == of_cpu[:2]
    assert list(map(str, precision.candidates("cuda:1", "fp32"))) == ["fp32"]
    for name, wanted in (("fp16", "fp16 weights"), ("bf16", "bf16 by autocast")):
        assert list(map(str, precision.candidates("cpu", name))) == [wanted]
    with pytest.raises(UsageError, match="unknown precision"):
        precision.candidates("cpu", "int8")


def test_threads_that_wait_sleep_unless_the_user_has_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    choose_device("cpu")
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    choose_device("cpu")
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_policy_of_the_user_decides_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    choose_device("cpu")
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_processor_of_the_same_name_with_other_instructions_is_another_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "cpuinfo"
    core = "processor\t: {}\nmodel name\t: EPYC\nflags\t\t: avx2{}\ncpu MHz\t\t: {}\n\n"

    def told(flags: str, megahertz: int) -> str:
        file.write_text("".join(core.format(number, flags, megahertz) for number in range(2)))
        return describe_processor(file)

    assert told("", 1_000) == told("", 3_000) != told(" avx512_bf16", 1_000)
    assert describe_processor(tmp_path / "none") == platform.processor()


def test_torch_that_cannot_be_loaded_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model = ResolvedModel(name="any", revision=None, path=tmp_path)
    for needs_it in (lambda: choose_device("auto"), lambda: open_network(model, AS_ITS_FILES_SAY)):
        with pytest.raises(ModelError, match=r"torch cannot be loaded: .*; install it"):
            needs_it()
    (told,) = guarded_checks("machine", check_machine)
    assert told.mark is Mark.FAILED
    assert "\n" not in told.finding
