"""The options that describe a pipeline and pick its records, shared by several commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli.options import OptionGroup, listed_columns
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS, spec_of_options
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.worker.settings import MODEL_PATH_HELP

if TYPE_CHECKING:
    from pgqueue_embed.queue.enqueue import Selection

PipelineName = Annotated[str, typer.Argument(help="Name of the pipeline.", show_default=False)]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model-path",
        help=MODEL_PATH_HELP,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Queue at most so many records.", show_default=False)
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", help="Only records matching this SQL condition, this time.", show_default=False
    ),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Queue records that are embedded already, too.")
]


AllowDeletes = Annotated[
    bool,
    typer.Option(
        "--allow-deletes",
        help="What is not in the source has been deleted, however much it is: delete its vectors.",
    ),
]


class WantedPipeline(OptionGroup):
    """The options that describe a pipeline to make."""

    options = tuple(PIPELINE_OPTIONS.values())

    @property
    def model(self) -> str:
        """The name or folder of its model."""
        return str(self.given["model"])

    @property
    def sync(self) -> bool:
        """Whether changes of the source are to be captured."""
        return bool(self.given["sync"])

    @property
    def has_source(self) -> bool:
        """Whether a source is named."""
        return self.given["source_table"] is not None

    @property
    def asked(self) -> dict[str, Any]:
        """The options that were named, by their names, as `spec_of_options` takes them."""
        return {each.name: self._read(each) for each in self.options if each.name in self.named}

    def spec(self, name: str) -> PipelineSpec:
        """Return the pipeline wanted; raises UsageError when the options do not fit together."""
        return spec_of_options(name, {each.name: self._read(each) for each in self.options})

    def _read(self, option: Option) -> Any:
        value = self.given[option.name]
        if value is not None and option.type is dict:
            return _column_names(value)
        return listed_columns(value) if value is not None and option.type is list else value


def _column_names(pairs: list[str]) -> dict[str, str]:
    names = {}
    for pair in pairs:
        meaning, equals, name = pair.partition("=")
        if not equals:
            raise UsageError(f"--target-column {pair}: write MEANING=NAME, e.g. embedding=vector")
        names[meaning] = name
    return names


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """The options of `run` that say which records of the pipeline to queue."""

    limit: Limit = None
    everything: Everything = False

    def selection(self) -> Selection:
        """Return the records wanted; raises UsageError for a limit below 1."""
        from pgqueue_embed.queue.enqueue import Selection

        return Selection(limit=self.limit, everything=self.everything)


@dataclass(frozen=True, kw_only=True)
class WantedRecords:
    """The options that say which records to queue."""

    limit: Limit = None
    where: Where = None
    everything: Everything = False

    def selection(self) -> Selection:
        """Return the records wanted; raises UsageError for a limit below 1."""
        from pgqueue_embed.queue.enqueue import Selection

        return Selection(where=self.where, limit=self.limit, everything=self.everything)
