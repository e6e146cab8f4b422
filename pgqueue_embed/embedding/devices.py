"""The devices (mps, cuda, cpu) and the differences in how they are treated."""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import re
from functools import cache
from pathlib import Path

from pgqueue_embed.errors import ModelError, UsageError

# Metal's own limit lies above the RAM: a Mac would swap instead of failing.
_MPS_MEMORY_FRACTION = 0.6
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|std::bad_alloc",
    re.IGNORECASE,
)

# What Linux tells of a processor that decides how fast it computes in what.
_OF_A_KIND = {"vendor_id", "cpu family", "model", "stepping", "model name", "flags"} | {
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
}


def require_torch() -> None:
    """Raise ModelError, with the way out, where torch cannot be loaded: what follows needs it."""
    try:
        import torch  # noqa: F401 - whether it loads is the question
    except Exception as error:  # its files and the system's are of any state
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"torch cannot be loaded: {reason}; install it again:"
            " pip install --force-reinstall torch"
        ) from error


@cache
def cores() -> int:
    """Return on how many cores torch computes, as when it was asked first.

    Later on some threads have fewer, and new ones have what the last of them was given.
    """
    import torch

    count: int = torch.get_num_threads()
    return count


def use_cores(count: int) -> None:
    """Let this thread compute on so many cores.

    A new one has what was given last to any. It takes that when it is asked, or when it computes
    first: so it is asked before it is told.
    """
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def check_device(requested: str) -> None:
    """Raise UsageError for what names no device, of whatever machine."""
    kind, _, number = requested.partition(":")
    known = kind in ("auto", "mps", "cuda", "cpu")
    if not known or (number and not (kind == "cuda" and number.isdigit())):
        raise UsageError(f"unknown device {requested!r}: give auto, mps, cuda, cuda:N or cpu")


def choose_device(requested: str) -> str:
    """Return the device for ``auto``, ``mps``, ``cuda``, ``cuda:N`` or ``cpu``.

    ``auto`` takes the first of mps, cuda and cpu that is there. This thread has all cores from then
    on, whatever those of other models have. Raises UsageError for a device
    that this machine does not have, ModelError without torch.
    """
    _let_waiting_threads_sleep()
    require_torch()
    use_cores(cores())
    import torch

    available = {
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "cpu": True,
    }
    if requested == "auto":
        return next(device for device, there in available.items() if there)
    check_device(requested)
    kind, _, number = requested.partition(":")
    if not available[kind] or (number and int(number) >= torch.cuda.device_count()):
        raise UsageError(f"this machine has no {requested} device; give --device auto or cpu")
    return requested


def _let_waiting_threads_sleep() -> None:
    """Keep the threads of a pass on a CPU from spinning for long while they wait for each other.

    Spinning takes the time of whoever else is on these cores, PostgreSQL and the tokenizer among
    them, and in the end its own (python -m benchmarks --only waiting). GNU OpenMP reads this when
    torch is loaded; a user who has asked for something else keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def configure_device(device: str) -> None:
    """Set what a device needs before a model is moved to it.

    PYTORCH_ENABLE_MPS_FALLBACK stays unset: it hides missing kernels.
    """
    import torch

    if kind_of(device) == "mps":
        torch.mps.set_per_process_memory_fraction(_MPS_MEMORY_FRACTION)


def kind_of(device: str) -> str:
    """Return ``mps``, ``cuda`` or ``cpu``."""
    return device.partition(":")[0]


def describe_device(device: str) -> str:
    """Return what the maker calls the device, or the processor's architecture for a CPU."""
    import torch

    if kind_of(device) == "cuda":
        return str(torch.cuda.get_device_name(device))
    if kind_of(device) == "mps":
        return str(torch.backends.mps.get_name())
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def describe_processor(information: Path = Path("/proc/cpuinfo")) -> str:
    """Return what tells one kind of processor from another, if the system says so.

    A virtual machine keeps its name where it is started on other hardware, and its processor may
    have the same name, and other instructions.
    """
    try:
        first, _, _ = information.read_text(errors="replace").partition("\n\n")
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in first.splitlines())
    facts = sorted((name.strip(), value) for name, _, value in lines if name.strip() in _OF_A_KIND)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def is_out_of_memory(exception: BaseException) -> bool:
    """Tell whether a smaller batch may help.

    Metal and the CPU raise a plain RuntimeError, so that their text has to be matched.
    """
    if isinstance(exception, MemoryError):
        return True
    return isinstance(exception, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(exception)))


def release_memory(device: str) -> None:
    """Give back to the device what nothing needs. Costs time: for use after out of memory only."""
    import torch

    gc.collect()  # an error and its frames refer to one another, and to what a pass had made
    if kind_of(device) == "mps":
        torch.mps.empty_cache()
    elif kind_of(device) == "cuda":
        torch.cuda.empty_cache()


def device_memory_bytes(device: str) -> int:
    """Return the bytes this process holds on its device; 0 for cpu, whose memory is the host's.

    For mps this is the driver's figure: the resident size of the process hides Metal memory.
    """
    import torch

    if kind_of(device) == "mps":
        return int(torch.mps.driver_allocated_memory())
    if kind_of(device) == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return 0
