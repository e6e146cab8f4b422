"""The options that describe a pipeline and pick its records, shared by several commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.errors import UsageError
from pgqueue_embed.identifiers import split_columns
from pgqueue_embed.settings import DEFAULT_MODEL
from pgqueue_embed.spec import PipelineSpec, spec_of_names
from pgqueue_embed.tables import TargetColumns

if TYPE_CHECKING:
    from pgqueue_embed.enqueue import Selection

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
IntoColumn = Annotated[
    str | None,
    typer.Option(
        "--into-column",
        metavar="NAME",
        help="Write each vector into this column of the source instead, which is added if it is not"
        " there; with --chunking none.",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
IdField = Annotated[
    list[str] | None,
    typer.Option(
        "--id-field",
        help="Unique key of the source; of several columns: a,b, or repeated. \\[default: id]",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
TextField = Annotated[
    list[str] | None,
    typer.Option(
        "--text-field",
        help="Column with the text; several, a,b or repeated, are joined by a blank line."
        " \\[default: text]",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="The text, made of any columns, e.g. '$title: $text'; ${any name}, $$ for a dollar.",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
ChunkTemplate = Annotated[
    str | None,
    typer.Option(
        "--chunk-template",
        help="What the model reads for each chunk, e.g. '$title\\\\n$chunk'; all of it counts as"
        " the chunk's tokens, and only the chunk is stored.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Chunking = Annotated[
    str,
    typer.Option(
        "--chunking",
        help="tokens, or none: a document is one chunk, and refused if the model cannot read it.",
        rich_help_panel=MODEL,
    ),
]
PipelineWhere = Annotated[
    str | None,
    typer.Option(
        "--where",
        help="Only rows matching this SQL condition are records of the pipeline, now and later.",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
TargetColumn = Annotated[
    list[str] | None,
    typer.Option(
        "--target-column",
        metavar="MEANING=NAME",
        help="Call a target column otherwise, e.g. embedding=vector; repeatable. fulltext_id takes"
        " as many names as the key has columns: fulltext_id=a,b. Meanings: "
        + ", ".join(vars(TargetColumns()))
        + ".",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
CopyColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--copy-columns",
        help="Columns of the source to copy into each chunk's row: a,b, or repeated. A change of"
        " one writes the record anew.",
        rich_help_panel=TABLES,
        show_default=False,
    ),
]
ForeignKey = Annotated[
    bool,
    typer.Option(
        "--foreign-key",
        help="Let the target table refer to the source: deleting a record deletes its vectors.",
        rich_help_panel=TABLES,
    ),
]
View = Annotated[
    bool,
    typer.Option(
        "--view",
        help="Make a view of source and chunks, <target>_view; PostgreSQL then refuses to drop the"
        " source's columns.",
        rich_help_panel=TABLES,
    ),
]
VectorType = Annotated[
    str,
    typer.Option(
        "--vector-type", help="vector (32 bit) or halfvec (16 bit).", rich_help_panel=TABLES
    ),
]
TruncateDim = Annotated[
    int | None,
    typer.Option(
        "--truncate-dim",
        help="Keep so many dimensions of each vector, the first ones; for models trained for that"
        " (Matryoshka). \\[default: all]",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Name on the Hugging Face hub, or a folder: /…, ./… or ~/…",
        rich_help_panel=MODEL,
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
Priority = Annotated[
    int,
    typer.Option(
        "--priority",
        help="Share of the workers' time, 1 to 100: one of 20 gets twice that of one of 10.",
        rich_help_panel=MODEL,
    ),
]
Sync = Annotated[
    bool,
    typer.Option(
        "--sync",
        help="Capture changes of the source by triggers, as pgembed sync --on does.",
        rich_help_panel=TABLES,
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


@dataclass(frozen=True, kw_only=True)
class WantedPipeline:
    """The options that describe a pipeline to make."""

    source_table: SourceTable = None
    target_table: TargetTable = None
    into_column: IntoColumn = None
    db_schema: Schema = "public"
    id_field: IdField = None
    text_field: TextField = None
    template: Template = None
    chunk_template: ChunkTemplate = None
    where: PipelineWhere = None
    target_column: TargetColumn = None
    copy_columns: CopyColumns = None
    foreign_key: ForeignKey = False
    view: View = False
    vector_type: VectorType = PipelineSpec.vector_type
    truncate_dim: TruncateDim = None
    model: Model = DEFAULT_MODEL
    chunking: Chunking = PipelineSpec.chunking
    chunk_size: ChunkSize = PipelineSpec.chunk_tokens
    overlap_tokens: OverlapTokens = PipelineSpec.overlap_tokens
    max_attempts: MaxAttempts = PipelineSpec.max_attempts
    priority: Priority = PipelineSpec.priority
    sync: Sync = False

    def spec(self, name: str) -> PipelineSpec:
        """Return the pipeline wanted; raises UsageError when the options do not fit together."""
        if self.source_table is None:
            raise UsageError("name the table with the text: --source-table schema.table")
        return spec_of_names(
            name,
            source_table=self.source_table,
            target_table=self.target_table,
            into_column=self.into_column,
            schema=self.db_schema,
            id_fields=columns_of(self.id_field or ["id"]),
            text_fields=columns_of(self.text_field or []),
            template=self.template,
            target_columns=_column_names(self.target_column or []),
            chunk_template=self.chunk_template,
            where=self.where,
            copy_columns=columns_of(self.copy_columns or []),
            foreign_key=self.foreign_key,
            view=self.view,
            vector_type=self.vector_type,
            truncate_dim=self.truncate_dim,
            chunking=self.chunking,
            chunk_tokens=self.chunk_size,
            overlap_tokens=self.overlap_tokens,
            max_attempts=self.max_attempts,
            priority=self.priority,
        )


def columns_of(lists: list[str]) -> tuple[str, ...]:
    """Return the columns that an option names, given once or often: ``a,b`` or ``a``, ``b``."""
    return tuple(name for each in lists for name in split_columns(each))


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
        from pgqueue_embed.enqueue import Selection

        return Selection(limit=self.limit, everything=self.everything)


@dataclass(frozen=True, kw_only=True)
class WantedRecords:
    """The options that say which records to queue."""

    limit: Limit = None
    where: Where = None
    everything: Everything = False

    def selection(self) -> Selection:
        """Return the records wanted; raises UsageError for a limit below 1."""
        from pgqueue_embed.enqueue import Selection

        return Selection(where=self.where, limit=self.limit, everything=self.everything)
