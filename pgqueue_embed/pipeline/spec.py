"""The settings of a pipeline, each with its option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pgqueue_embed.db.names import Table
from pgqueue_embed.pipeline.document import Recipe
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.rules import check_columns, check_prompt, check_where_option
from pgqueue_embed.pipeline.target_columns import TargetColumns

# The panels of the help of `create`, and of what `show` prints.
TABLES = "Tables and columns"
MODEL = "Model and chunks"

# The options, and fields of a pipeline, that say how its model is used.
USE_OPTIONS = ("document_prompt", "query_prompt", "control_tokens", "pooling")

# In the place of a type of vectors: it is chosen when the pipeline is made, and stays then.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """The settings of a pipeline; `spec_checks.checked` tells whether they go together.

    `target` is a table to make; with `into_column`, the vectors go into that column of the source
    instead, which is the target then. `id_fields` are the columns of the source's key. The
    document is made of `text_fields`, or by `template`; `chunk_template` is what the model reads
    for a chunk. `where` is SQL that says which rows of the source are records. With `chunking` none
    a document is one chunk, whatever `chunk_tokens` says. The first `truncate_dim` dimensions of a
    vector are kept, or all. A `vector_type` of AUTO is none yet. The prompts are put in front of
    what the model reads: None is the model's own, NO_PROMPT none. With `control_tokens` a text may
    spell those of the model. `pooling` is for a model whose files do not say how the vectors of
    tokens become one.

    Of a target table alone: it stores the `text` of each chunk, or only where that stands in the
    document, and `ids` of them; `copy_columns` of the source stand beside each chunk, with
    `foreign_key` it refers to the source, whose deletes it follows, with `view` there is a view of
    both, and `partition_by` says its parts. Workers build the index of `index_method`, of vectors
    as `quantize` says, and of words if `lexical`, once all is embedded. With `trust_owners`, code
    of the tables' owners may run with the rights of whoever works on the pipeline.
    """

    name: str
    source: Annotated[
        Table,
        Option(
            name="source_table",
            help="Table or view with the text: table or schema.table.",
            panel=TABLES,
        ),
    ]
    target: Annotated[
        Table,
        Option(
            name="target_table",
            help="Table to make for the vectors.",
            usual="the source table's name + _vectors",
            panel=TABLES,
        ),
    ]
    into_column: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Write each vector into this column of the source instead, which is added if it is"
            " not there; with --chunking none.",
            panel=TABLES,
            more="targets.md#a-column-of-your-table",
        ),
    ] = None
    id_fields: Annotated[
        tuple[str, ...],
        Option(
            name="id_field",
            help="Unique key of the source; of several columns: a,b, or repeated.",
            usual="id",
            panel=TABLES,
            rule=check_columns,
        ),
    ] = ("id",)
    text_fields: Annotated[
        tuple[str, ...],
        Option(
            name="text_field",
            help="Column with the text; several, a,b or repeated, are joined by a blank line.",
            usual="text",
            panel=TABLES,
            rule=check_columns,
            alter="Column with the text; repeatable.",
        ),
    ] = ()
    template: Annotated[
        str | None,
        Option(
            help="The text, made of any columns, e.g. '$title: $text'; ${any name}, $$ for a"
            " dollar.",
            panel=TABLES,
            alter="Make the document of columns: '$title: $text'.",
        ),
    ] = None
    chunk_template: Annotated[
        str | None,
        Option(
            help=r"What the model reads for each chunk, e.g. '$title\n$chunk'; all of it counts as"
            " the chunk's tokens, and only the chunk is stored.",
            panel=MODEL,
            alter="What the model reads for a chunk: '$title: $chunk'; '' for the bare chunk.",
            may_go=True,
        ),
    ] = None
    where: Annotated[
        str | None,
        Option(
            help="Only rows matching this SQL condition are records of the pipeline, now and"
            " later.",
            panel=TABLES,
            rule=check_where_option,
            alter="Which rows are records, an SQL condition; '' for all.",
            may_go=True,
        ),
    ] = None
    columns: Annotated[
        TargetColumns,
        Option(
            name="target_column",
            type=dict,
            metavar="MEANING=NAME",
            help="Call a target column otherwise, e.g. embedding=vector; repeatable. fulltext_id"
            " takes as many names as the key has columns: fulltext_id=a,b. Meanings: "
            + ", ".join(vars(TargetColumns()))
            + ".",
            panel=TABLES,
        ),
    ] = field(default_factory=TargetColumns)
    text: Annotated[
        bool,
        Option(
            help="Whether the texts of chunks are stored. With --no-text, only where they stand in"
            " the document is: searches and the view <target>_chunks read them from the source.",
            panel=TABLES,
            alter="Store the texts of chunks, or only where they stand in the document.",
            more="large-tables.md#without-the-texts",
        ),
    ] = True
    ids: Annotated[
        bool,
        Option(
            help="Whether chunks have the columns id and chunk_id. With --no-ids, their key and"
            " chunk_index tell them apart: an index less, and some bytes a chunk.",
            panel=TABLES,
            alter="Give chunks the columns id and chunk_id, or not.",
            more="large-tables.md#fewer-bytes-a-chunk",
        ),
    ] = True
    copy_columns: Annotated[
        tuple[str, ...],
        Option(
            help="Columns of the source to copy into each chunk's row: a,b, or repeated. A change"
            " of one writes the record anew.",
            panel=TABLES,
            rule=check_columns,
            alter="Columns to copy, repeatable; '' for none.",
            may_go=True,
            more="targets.md",
        ),
    ] = ()
    foreign_key: Annotated[
        bool,
        Option(
            help="Let the target table refer to the source: deleting a record deletes its vectors.",
            panel=TABLES,
            alter="Refer to the source, or not.",
            more="targets.md",
        ),
    ] = False
    view: Annotated[
        bool,
        Option(
            help="Make a view of source and chunks, <target>_view; PostgreSQL then refuses to drop"
            " the source's columns.",
            panel=TABLES,
            alter="Make the view of source and chunks (anew).",
            alters_vectors=False,
            more="targets.md",
        ),
    ] = False
    partition_by: Annotated[
        str | None,
        Option(
            help="Part the target table by the key: hash:16 for 16 parts, or"
            " range:year:2024,2025,2026 for a part from each value to the next, and one for the"
            " rest, where the key has that column.",
            panel=TABLES,
            alter="Part the target table by the key, hash:16 or range:year:2024,2025; '' for one"
            " table.",
            may_go=True,
            more="large-tables.md#parts",
        ),
    ] = None
    trust_owners: Annotated[
        bool,
        Option(
            help="Let code of the tables' owners (views, casts, triggers) run with the rights of"
            " whoever works on the pipeline, a superuser's too.",
            panel=TABLES,
            alter="Let code of the tables' owners run with the rights of whoever works on it.",
            alters_vectors=False,
            more="security.md#whose-code-runs",
        ),
    ] = False
    vector_type: Annotated[
        str,
        Option(
            help="vector (32 bit) or halfvec (16 bit); auto is halfvec from 768 dimensions up, and"
            " the type of an --into-column that is there.",
            panel=TABLES,
            choices=(AUTO, "vector", "halfvec"),
            alter="vector or halfvec.",
            more="targets.md#half-precision",
        ),
    ] = AUTO
    truncate_dim: Annotated[
        int | None,
        Option(
            help="Keep so many dimensions of each vector, the first ones; for models trained for"
            " that (Matryoshka).",
            usual="all",
            unit="dimension",
            minimum=1,
            panel=MODEL,
            alter="Dimensions to keep of a vector; 0 for all.",
            may_go=True,
            more="targets.md#fewer-dimensions",
        ),
    ] = None
    document_prompt: Annotated[
        str | None,
        Option(
            help=r"What the model reads before each chunk, e.g. 'passage: '; \n is a line break,"
            " and none is no prompt at all. Counts as the chunk's tokens.",
            usual="the model's own",
            panel=MODEL,
            rule=check_prompt,
            alter="What the model reads before a chunk; none for nothing, '' for the model's own.",
            may_go=True,
            more="models.md#prompts",
        ),
    ] = None
    query_prompt: Annotated[
        str | None,
        Option(
            help=r"What the model reads before a search query, e.g. 'query: '; \n is a line break,"
            " and none is no prompt at all.",
            usual="the model's own",
            panel=MODEL,
            rule=check_prompt,
            alter="What the model reads before a query; none for nothing, '' for the model's own.",
            alters_vectors=False,
            with_vectors=True,
            may_go=True,
            more="models.md#prompts",
        ),
    ] = None
    control_tokens: Annotated[
        bool,
        Option(
            help="Read control tokens that a text spells, such as [SEP], as what they are; for"
            " models trained so, with title[SEP]abstract.",
            panel=MODEL,
            alter="Read control tokens that a text spells as what they are, or as text.",
            more="models.md#control-tokens-in-a-text",
        ),
    ] = False
    pooling: Annotated[
        str | None,
        Option(
            help="How the vectors of tokens become one, for a model whose files do not say it:"
            " mean, cls, max, lasttoken, weightedmean or mean_sqrt_len_tokens.",
            panel=MODEL,
            choices=("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"),
            alter="How the vectors of tokens become one, where the model's files do not say it;"
            " '' where they do.",
            may_go=True,
            more="models.md#what-is-refused-and-why",
        ),
    ] = None
    chunking: Annotated[
        str,
        Option(
            help="tokens, or none: a document is one chunk, and refused if the model cannot read"
            " it.",
            panel=MODEL,
            choices=("tokens", "none"),
            alter="tokens or none.",
        ),
    ] = "tokens"
    chunk_tokens: Annotated[
        int,
        Option(
            name="chunk_size",
            help="Most tokens of a chunk.",
            unit="token",
            minimum=1,
            panel=MODEL,
            alter="Most tokens of a chunk.",
        ),
    ] = 128
    overlap_tokens: Annotated[
        int,
        Option(
            help="Tokens repeated from the chunk before.",
            unit="token",
            panel=MODEL,
            alter="Tokens repeated from the chunk before.",
        ),
    ] = 20
    max_attempts: Annotated[
        int,
        Option(
            help="Tries before a failing record is given up.",
            minimum=1,
            maximum=1_000_000,
            panel=MODEL,
            alter="Tries before a failing record is given up.",
            alters_vectors=False,
        ),
    ] = 3
    priority: Annotated[
        int,
        Option(
            help="Share of the workers' time, 1 to 100: one of 20 gets twice that of one of 10.",
            minimum=1,
            maximum=100,
            panel=MODEL,
            alter="Share of the workers' time, 1 to 100.",
            alters_vectors=False,
        ),
    ] = 10
    index_method: Annotated[
        str | None,
        Option(
            name="index",
            help="Vector index that a worker builds once the queue has drained: hnsw or ivfflat.",
            panel=TABLES,
            choices=("hnsw", "ivfflat"),
            alter="Vector index to build once the queue has drained: hnsw or ivfflat; '' for none.",
            alters_vectors=False,
            may_go=True,
            more="search.md#an-index",
        ),
    ] = None
    quantize: Annotated[
        str,
        Option(
            help="What that index holds: vectors as they are (none), in 16 bits (halfvec) or in one"
            " bit a dimension (binary).",
            panel=TABLES,
            choices=("none", "halfvec", "binary"),
            alter="What the index holds: none (the vectors as they are), halfvec or binary.",
            alters_vectors=False,
            more="search.md#an-index",
        ),
    ] = "none"
    lexical: Annotated[
        bool,
        Option(
            help="Let a worker index the words, once the queue has drained, for search --hybrid.",
            panel=TABLES,
            alter="Let a worker index the words of the chunks, for search --hybrid.",
            alters_vectors=False,
            more="search.md#words-and-vectors",
        ),
    ] = False

    @property
    def recipe(self) -> Recipe:
        """How a document is made."""
        return Recipe(
            text_fields=self.text_fields,
            template=self.template,
            chunk_template=self.chunk_template,
        )

    @property
    def destination(self) -> tuple[Table, str | None]:
        """Where the vectors go: a table, or a column of it."""
        return self.target, self.into_column
