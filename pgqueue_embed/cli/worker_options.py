"""The options of a worker, shared by `work` and `run`."""

from __future__ import annotations

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
