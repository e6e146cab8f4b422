"""The command that looks for what keeps work from running: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import console, one_line
from pgqueue_embed.cli.options import OptionGroup, connected
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS
from pgqueue_embed.pipeline.spec import USE_OPTIONS
from pgqueue_embed.quantities import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from pgqueue_embed.doctor import Check
    from pgqueue_embed.embedding import ModelUse

STYLES = {"ok": "green", "warning": "bold yellow", "failed": "bold red"}


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Try this model here too: a name, or a folder (./…). Defaults to those of the"
        " pipelines.",
        show_default=False,
    ),
]
OnlyPipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline", help="Look at this pipeline only. Defaults to all.", show_default=False
    ),
]


class WantedUse(OptionGroup):
    """The options that say how a model is used, as those of create."""

    options = tuple(PIPELINE_OPTIONS[name] for name in USE_OPTIONS)

    def of(self, model: str | None) -> ModelUse:
        """Return the use of a model; raises UsageError for what cannot be, or is said of none."""
        from pgqueue_embed.pipeline.model import use_of_options

        for option in self.options:
            if option.name in self.named and model is None:
                raise UsageError(f"{option.flag} says how to use a model: name it with --model")
            option.check(self.given[option.name])
        return use_of_options(self.given)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(doctor))


def doctor(
    conninfo: str,
    wanted: WantedUse,
    model: Model = None,
    pipeline: OnlyPipeline = None,
) -> None:
    """Check database, rights, tables, models and device, with the fix for what is wrong.

    It changes nothing in the database, and fetches a model that is missing
    as a worker would. Exits with 1 if work could not run.

    Example: pgembed doctor --model ./e5 --query-prompt 'query: '
    """
    from pgqueue_embed.doctor import Mark, examine

    use = wanted.of(model)
    out = console()
    checks = []
    with _waiting() as spinner:
        for check in examine(conninfo, model_name=model, use=use, pipeline_name=pipeline):
            checks.append(check)
            spinner.stop()
            _show(out, check)
            spinner.start()
    failures = sum(check.mark is Mark.FAILED for check in checks)
    warnings = sum(check.mark is Mark.WARNING for check in checks)
    out.print()
    if failures:
        out.print(f"work cannot run: {count(failures, 'check')} failed")
        raise typer.Exit(1)
    out.print(
        f"ready for work, with {count(warnings, 'warning')}" if warnings else "ready for work"
    )


def _waiting() -> Status:
    """Show that something happens: a model takes seconds to load."""
    from pgqueue_embed.cli.display import progress_console

    return progress_console().status("looking")


def _show(out: Console, check: Check) -> None:
    from rich.text import Text

    mark = check.mark.value
    line = Text.assemble((f"{mark:<9}", STYLES[mark]), (one_line(check.subject), "bold"))
    line.append(f": {one_line(check.finding)}")
    if check.fix:
        line.append(f" → {one_line(check.fix)}")
    out.print(line, soft_wrap=True)
