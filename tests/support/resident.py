"""Memory of this process that holds a file, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

_MAPS = Path("/proc/self/smaps")


def has_maps() -> bool:
    """Tell whether the system says what is resident of each file."""
    return _MAPS.exists()


def resident_bytes(path: Path) -> int:
    """Return how much of a file is in the memory of this process."""
    total, is_of_file = 0, False
    for line in _MAPS.read_text().splitlines():
        name, *more = line.split()
        if not name.endswith(":"):
            is_of_file = bool(more) and more[-1] == str(path)
        elif is_of_file and name == "Rss:":
            total += int(more[0]) * 1024
    return total
