"""The report of a benchmark: a table for people, JSON for programs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Measured, Reach

RESULTS = Path(__file__).parent / "results"


def print_report(console: Console, machine: dict[str, Any], measured: Measured) -> None:
    """Print the figures in one table, the targets in another, and what was skipped."""
    flags = ", ".join(machine["flags"]) or "none of interest"
    console.print(
        f"\n{machine['processor']}, {machine['cores']} cores ({flags}), "
        f"{machine['memory_gib']} GiB, torch {machine['versions']['torch']}, "
        f"commit {machine['commit']}"
    )
    console.print(_figures(measured.figures))
    if measured.reaches:
        console.print(_reaches(measured.reaches))
    for note in measured.notes:
        console.print(f"- {note}", soft_wrap=True)


def _figures(figures: list[Figure]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("part", "what", "corpus"):
        table.add_column(heading)
    for heading in ("median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for heading in ("unit", "note"):
        table.add_column(heading)
    part = ""
    for figure in figures:
        if figure.part != part and part:
            table.add_section()
        shown = "" if figure.part == part else figure.part
        part = figure.part
        numbers = (figure.median, min(figure.values), max(figure.values))
        texts = (shown, figure.name, figure.corpus, *map(_number, numbers))
        table.add_row(*texts, figure.unit, figure.note)
    return table


def _reaches(reaches: list[Reach]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target")
    for heading in ("measured", "wanted"):
        table.add_column(heading, justify="right")
    for heading in ("unit", "verdict"):
        table.add_column(heading)
    for reach in reaches:
        sign = "≤" if reach.at_most else "≥"
        verdict = "[green]ok[/]" if reach.is_reached else "[red]short[/]"
        wanted = f"{sign} {_number(reach.target)}"
        table.add_row(reach.name, _number(reach.measured), wanted, reach.unit, verdict)
    return table


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def new_file() -> Path:
    """Return the path of a file for the figures of a run that begins now."""
    return RESULTS / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"


def write_json(file: Path, machine: dict[str, Any], measured: Measured) -> None:
    """Write everything so far, each round included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "figures": [figure.to_json() for figure in measured.figures],
        "targets": [reach.to_json() for reach in measured.reaches],
        "notes": measured.notes,
    }
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
