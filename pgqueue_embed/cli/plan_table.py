"""Prints the differences between a configuration file and the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgqueue_embed.cli.display import console, one_line
from pgqueue_embed.configuration.values import value_text
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from rich.console import Console

    from pgqueue_embed.configuration.plan import Difference, Plan, PlannedPipeline

# A setting, what becomes of it, and when.
Row = tuple[str, str, str]

# Of a new pipeline, these are shown even if they are the default.
ALWAYS = ("target_table", "model")

STYLES = {"+": "green", "~": "yellow", "=": "dim", "?": "dim"}


def show_plan(plan: Plan) -> None:
    """Print what is to be done, pipeline by pipeline, and the whole in one line."""
    out = console()
    for each in plan.comparisons:
        _print_pipeline(out, _sign(each), each.declared.spec.name, _state(each))
        _print_rows(out, list(_rows(each)))
    for pipeline in plan.undeclared:
        _print_pipeline(out, "?", pipeline.name, "not in the file, left alone")
    out.print()
    out.print(_sum(plan))


def _print_pipeline(out: Console, sign: str, name: str, state: str) -> None:
    out.print(f"{sign} {one_line(name)}: {state}", style=STYLES[sign], soft_wrap=True)


def _print_rows(out: Console, rows: list[Row]) -> None:
    from rich.table import Table

    if not rows:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=max(map(len, PIPELINE_OPTIONS)) + 4)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True, style="dim")
    for key, change, when in rows:
        table.add_row(f"    {key}", one_line(change), when)
    out.print(table)


def _sign(comparison: PlannedPipeline) -> str:
    return "=" if comparison.is_settled else "~" if comparison.pipeline else "+"


def _state(comparison: PlannedPipeline) -> str:
    if comparison.pipeline is None:
        return "new"
    if comparison.successor is not None:
        switch = command("alter", comparison.pipeline.name, "--switch", "--wait")
        return f"its next generation is as in the file, and in progress; to switch: {switch}"
    return "unchanged" if comparison.is_settled else "to be altered"


def _rows(comparison: PlannedPipeline) -> Iterator[Row]:
    if comparison.pipeline is not None:
        yield from map(_change, comparison.differences)
        return
    values = comparison.declared.values
    for key in PIPELINE_OPTIONS.values():
        if key.name in values and (key.name in ALWAYS or values[key.name] != key.default):
            yield key.name, value_text(values[key.name]), ""


def _change(difference: Difference) -> Row:
    when = "at once" if difference.at_once else "by a new generation"
    return (
        difference.key,
        f"{value_text(difference.present)} → {value_text(difference.wanted)}",
        when,
    )


def _sum(plan: Plan) -> str:
    if plan.is_settled:
        return "nothing to do"
    new = sum(each.pipeline is None for each in plan.comparisons)
    settled = sum(each.is_settled for each in plan.comparisons)
    altered = len(plan.comparisons) - new - settled
    return f"{new} new, {altered} to be altered, {settled} unchanged"
