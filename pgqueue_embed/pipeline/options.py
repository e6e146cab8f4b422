"""All options of a pipeline, as a command, a file or a program gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pgqueue_embed.db.names import Table, parse_table, with_suffix
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import Option, check_options, in_order, options_of
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.pipeline.spec import MODEL, TABLES, PipelineSpec
from pgqueue_embed.pipeline.spec_checks import check_name, checked
from pgqueue_embed.pipeline.target_columns import TargetColumns


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What is said with a pipeline and is no field of it: `behind` says where in the order."""

    db_schema: Annotated[
        str, Option(help="Schema of both tables.", panel=TABLES, behind="into_column")
    ] = "public"
    model: Annotated[
        str,
        Option(
            help="Name on the Hugging Face hub, or a folder: /…, ./… or ~/…",
            panel=MODEL,
            behind="truncate_dim",
            alter="Name on the Hugging Face hub, or a folder: /…, ./… or ~/…",
        ),
    ] = DEFAULT_MODEL
    sync: Annotated[
        bool,
        Option(
            help="Capture changes of the source by triggers, as pgembed sync --on does.",
            panel=TABLES,
            behind="lexical",
            more="keeping-in-sync.md",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What stored vectors must be like to be adopted."""

    min_cosine: Annotated[
        float,
        Option(
            help="Least cosine of a stored vector with the one that the model gives.",
            panel="Comparing",
        ),
    ] = 0.99
    sample: Annotated[
        int, Option(help="Chunks to draw at random and compare.", unit="chunk", panel="Comparing")
    ] = 200


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How a sample of stored vectors is drawn and judged; raises UsageError for what cannot be."""

    sample: Annotated[
        int,
        Option(
            help="Compare so many chunks, drawn at random.",
            unit="chunk",
            minimum=1,
            maximum=1_000_000,
            panel="Comparing",
        ),
    ] = 200
    min_cosine: Annotated[
        float,
        Option(
            help="Least cosine of a vector that agrees with fp32.",
            minimum=0,
            maximum=1,
            panel="Comparing",
        ),
    ] = 0.999

    def __post_init__(self) -> None:
        check_options(self)


# By their name, in the order of the help, of files, and of what is shown.
PIPELINE_OPTIONS = {option.name: option for option in in_order(PipelineSpec, Beside)}

# Those that `alter` changes.
ALTERABLE = {name: option for name, option in PIPELINE_OPTIONS.items() if option.alter}


def spec_of_options(name: str, given: Mapping[str, Any]) -> PipelineSpec:
    """Return the pipeline that the options `given` describe, by their names; None is not given.

    Tables are texts, lists of names tuples, and names by meaning a mapping. Without `target_table`,
    it is the source's name and ``_vectors``; without any text, column ``text``. Raises UsageError
    for what no pipeline can be.
    """
    values = {
        option.field: given[option.name]
        for option in options_of(PipelineSpec)
        if given.get(option.name) is not None
    }
    if "source" not in values:
        raise UsageError("name the table with the text: --source-table schema.table")
    if "into_column" in values and (values.get("target") or values.get("columns")):
        raise UsageError(
            "--into-column puts the vectors into the source: there is no target table for"
            " --target-table or --target-column to name"
        )
    schema = given.get("db_schema") or Beside.db_schema
    source = parse_table(values["source"], schema)
    target = Table(schema=source.schema, name=with_suffix(source.name, "_vectors"))
    values["source"] = source
    values["target"] = parse_table(values["target"], schema) if values.get("target") else target
    values["columns"] = TargetColumns().renamed(dict(values.get("columns") or {}))
    if not values.get("text_fields"):
        values["text_fields"] = () if values.get("template") else ("text",)
    check_name(name)
    return checked(PipelineSpec(name=name, **values))
