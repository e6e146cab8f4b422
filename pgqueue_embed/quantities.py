"""Numbers, times and sizes in words: the same on a terminal, on a page and in messages."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Return ``1 record`` or ``2,000 records``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a length of time by its two largest units: ``45 s``, ``1 min 59 s``, ``2 d 3 h``."""
    whole = int(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"))
    units = [*parts, (whole % 60, "s")]
    while len(units) > 1 and not units[0][0]:
        units.pop(0)
    largest, *rest = units
    second = [unit for unit in rest[:1] if unit[0]]
    return " ".join(f"{number} {name}" for number, name in (largest, *second))


# Up to so many seconds, a range is given in steps of so many.
SPAN_STEPS = ((90, 5), (600, 30), (3600, 60), (36000, 300), (172800, 3600))


def span(low_seconds: float, high_seconds: float) -> str:
    """Return a range of time in round numbers: ``40 – 55 s``, ``2 h 10 – 2 h 25 min``."""
    step = next((step for most, step in SPAN_STEPS if high_seconds < most), 21600)
    low = low_seconds // step * step
    high = -(-high_seconds // step) * step
    if not low:
        return f"less than {duration(high)}"
    if low == high:
        return duration(low)
    *first, unit = duration(low).split()
    last = duration(high).split()
    is_alike = unit == last[-1] and len(first) + 1 == len(last)
    return f"{' '.join(first if is_alike else [*first, unit])} – {' '.join(last)}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share, 0 to 1, as ``68.2 %``."""
    return f"{100 * share:.{digits}f} %"


def size(byte_count: int | None) -> str:
    """Return a number of bytes: ``40 kB``, ``850 MB``, ``1.9 GB``, or nothing for None."""
    if byte_count is None:
        return ""
    megabytes = byte_count / 1024**2
    if 0 < megabytes < 1:
        return f"{-(-byte_count // 1024)} kB"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"
