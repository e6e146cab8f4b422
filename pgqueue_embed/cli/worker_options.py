"""The options of a worker, shared by `work` and `run`."""

from __future__ import annotations

from pathlib import Path

from pgqueue_embed.cli.options import OptionGroup
from pgqueue_embed.pipeline.option import options_of
from pgqueue_embed.worker.settings import WorkerSettings


class WorkerOptions(OptionGroup):
    """The options that say how a worker works."""

    options = options_of(WorkerSettings)

    def settings(
        self, *, drain: bool, pipelines: tuple[str, ...], max_records: int | None = None
    ) -> WorkerSettings:
        """Return the settings of a worker; raises UsageError for a value out of range."""
        values = {each.field: self.given[each.name] for each in self.options}
        return WorkerSettings(drain=drain, pipelines=pipelines, max_records=max_records, **values)

    def words(self) -> tuple[str, ...]:
        """Return those that a person gave, as words of a command line in any working folder."""
        given = {name: self.given[name] for name in self.named if self.given[name] is not None}
        if "model_path" in given:
            given["model_path"] = Path(given["model_path"]).resolve()
        return tuple(
            f"{each.flag}={given[each.name]}" for each in self.options if each.name in given
        )
