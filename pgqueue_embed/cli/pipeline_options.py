"""The options that describe a pipeline, shared by `create` and `run`."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue_embed.settings import TargetColumns

TABLES = "Tables and columns"
MODEL = "Model and chunks"

PipelineName = Annotated[str, typer.Argument(help="Name of the pipeline.", show_default=False)]
Schema = Annotated[
    str, typer.Option("--db-schema", help="Schema of both tables.", rich_help_panel=TABLES)
]
SourceTable = Annotated[
    str | None,
    typer.Option(
        "--source-table",
        help="Table or view with the text: table or schema.table.",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
TargetTable = Annotated[
    str | None,
    typer.Option(
        "--target-table",
        help="Table to make for the vectors. \\[default: the source table's name + _vectors]",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
IdField = Annotated[
    str, typer.Option("--id-field", help="Unique key of the source.", rich_help_panel=TABLES)
]
TextField = Annotated[
    str, typer.Option("--text-field", help="Column with the text.", rich_help_panel=TABLES)
]
TargetColumn = Annotated[
    list[str] | None,
    typer.Option(
        "--target-column",
        metavar="MEANING=NAME",
        help="Call a target column otherwise, e.g. embedding=vector; repeatable. Meanings: "
        + ", ".join(vars(TargetColumns()))
        + ".",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
VectorType = Annotated[
    str,
    typer.Option(
        "--vector-type", help="vector (32 bit) or halfvec (16 bit).", rich_help_panel=TABLES
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="Name on the Hugging Face hub, or a folder.", rich_help_panel=MODEL
    ),
]
ChunkSize = Annotated[
    int, typer.Option("--chunk-size", help="Most tokens of a chunk.", rich_help_panel=MODEL)
]
OverlapTokens = Annotated[
    int,
    typer.Option(
        "--overlap-tokens", help="Tokens repeated from the chunk before.", rich_help_panel=MODEL
    ),
]
MaxAttempts = Annotated[
    int,
    typer.Option(
        "--max-attempts", help="Tries before a failing record is given up.", rich_help_panel=MODEL
    ),
]
