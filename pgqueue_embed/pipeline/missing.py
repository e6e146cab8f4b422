"""Names a table or column of the source that is not there by its name, and the way out."""

from __future__ import annotations

from pgqueue_embed.db.steps import Step, Steps
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec_checks import NEXT_NAME
from pgqueue_embed.untrusted.shell import command

LACKS = "select pgembed.source_lacks(pipelines) from pgembed.pipelines where id = %s"


def missing_of(pipeline: Pipeline) -> Steps[str | None]:
    """Return which table or column is missing, as a sentence; None where all is there."""
    rows = yield Step(LACKS, (pipeline.id,))
    return rows[0][0] if rows else None


def if_renamed(pipeline: Pipeline) -> str:
    """Return what to do if that has another name; a next generation follows along."""
    name = pipeline.name.removesuffix(NEXT_NAME)
    return f"if it has another name now: {command('alter', name, '--follow-source')}"
