"""What a person asks for when creating a pipeline, checked as far as no database is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pgqueue_embed.document import Recipe
from pgqueue_embed.errors import UsageError
from pgqueue_embed.identifiers import check_identifier
from pgqueue_embed.tables import Table, TargetColumns, parse_table

# What options and configuration files call a field, where they do not call it by its name.
OPTION_NAMES = {
    "source": "source_table",
    "target": "target_table",
    "id_fields": "id_field",
    "text_fields": "text_field",
    "columns": "target_column",
    "chunk_tokens": "chunk_size",
}

MAX_PRIORITY = 100
MAX_ATTEMPTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """A pipeline to make.

    `target` is a table to make; with `into_column`, the vectors go into that column of the source
    instead, which is the target then. `id_fields` are the columns of the source's key. The
    document is made of `text_fields`, or by `template`; `chunk_template` is what the model reads
    for a chunk. `where` is SQL that says which rows of the source are records. With `chunking` none
    a document is one chunk, whatever `chunk_tokens` says. The first `truncate_dim` dimensions of a
    vector are kept, or all. Of a target table alone: `copy_columns` of the source stand beside each
    chunk, with `foreign_key` it refers to the source, whose deletes it follows, and with `view`
    there is a view of both.
    """

    name: str
    source: Table
    target: Table
    id_fields: tuple[str, ...] = ("id",)
    text_fields: tuple[str, ...] = ()
    template: str | None = None
    chunk_template: str | None = None
    where: str | None = None
    chunking: str = "tokens"
    chunk_tokens: int = 128
    overlap_tokens: int = 20
    into_column: str | None = None
    columns: TargetColumns = field(default_factory=TargetColumns)
    vector_type: str = "vector"
    truncate_dim: int | None = None
    copy_columns: tuple[str, ...] = ()
    foreign_key: bool = False
    view: bool = False
    max_attempts: int = 3
    priority: int = 10

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot work; name the target's key columns."""
        check_name(self.name)
        _check_columns(self.id_fields, "--id-field")
        _check_columns(self.text_fields, "--text-field")
        _check_columns(self.copy_columns, "--copy-columns")
        self._check_document()
        self._check_chunks()
        object.__setattr__(self, "columns", self.columns.for_key(self.id_fields))
        if self.vector_type not in ("vector", "halfvec"):
            raise UsageError(f"--vector-type {self.vector_type}: give vector or halfvec")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise UsageError(f"--truncate-dim {self.truncate_dim}: give at least 1 dimension")
        check_max_attempts(self.max_attempts)
        check_priority(self.priority)
        self._check_target()

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

    def _check_document(self) -> None:
        if self.text_fields and self.template is not None:
            raise UsageError("--text-field and --template both make the document; give one of them")
        if not self.text_fields and self.template is None:
            raise UsageError("name the column with the text: --text-field NAME")
        for name in self.recipe.names():
            check_identifier(name)
        if self.where is not None and not self.where.strip():
            raise UsageError("--where is empty; leave it out, or give a condition")

    def _check_target(self) -> None:
        if self.into_column is None:
            if self.source == self.target:
                raise UsageError(
                    f"{self.source} cannot be source and target at once; for vectors in a column"
                    " of it: --chunking none --into-column NAME"
                )
            self._check_copied()
            return
        for option, given in self._of_tables():
            if given:
                raise UsageError(
                    f"{option} belongs to a target table; leave it out, or --into-column"
                )
        if self.chunking != "none":
            raise UsageError(
                f"--into-column {self.into_column}: a row has room for one vector; add --chunking"
                " none, or leave it out"
            )
        if self.into_column in (*self.id_fields, *self.recipe.names()):
            raise UsageError(
                f"--into-column {self.into_column}: the record is read from that column; name"
                " another one"
            )
        if self.into_column in {*self.columns.names()} - {self.columns.embedding}:
            raise UsageError(
                f"--into-column {self.into_column}: a search calls something else by that name;"
                " name another one"
            )
        object.__setattr__(self, "target", self.source)
        object.__setattr__(self, "columns", replace(self.columns, embedding=self.into_column))

    def _of_tables(self) -> Iterator[tuple[str, bool]]:
        """Yield the options that go with a target table alone, and whether they are given."""
        yield "--copy-columns", bool(self.copy_columns)
        yield "--foreign-key", self.foreign_key
        yield "--view", self.view

    def _check_copied(self) -> None:
        for name in self.copy_columns:
            if name in self.columns.names():
                raise UsageError(
                    f"--copy-columns {name}: the target table has a column of that name; call its"
                    " own one otherwise with --target-column"
                )

    def _check_chunks(self) -> None:
        if self.chunking not in ("tokens", "none"):
            raise UsageError(f"--chunking {self.chunking}: give tokens or none")
        if self.chunk_tokens < 1:
            raise UsageError(f"--chunk-size {self.chunk_tokens}: give at least 1 token")
        if not 0 <= 2 * self.overlap_tokens < self.chunk_tokens:
            raise UsageError(
                f"--overlap-tokens {self.overlap_tokens}: give 0 to {(self.chunk_tokens - 1) // 2},"
                f" less than half of --chunk-size {self.chunk_tokens}"
            )


def spec_of_names(
    name: str,
    *,
    source_table: str,
    target_table: str | None,
    schema: str,
    id_fields: tuple[str, ...],
    text_fields: tuple[str, ...],
    template: str | None,
    target_columns: Mapping[str, str],
    into_column: str | None = None,
    **settings: Any,
) -> PipelineSpec:
    """Return the pipeline whose tables and columns a person names; `settings` are its others.

    Without `target_table`, the source's name and ``_vectors``; without any text, column ``text``.
    Raises UsageError for what no pipeline can be.
    """
    if into_column is not None and (target_table or target_columns):
        raise UsageError(
            "--into-column puts the vectors into the source: there is no target table for"
            " --target-table or --target-column to name"
        )
    source = parse_table(source_table, schema)
    target = Table(schema=source.schema, name=f"{source.name}_vectors")
    return PipelineSpec(
        name=name,
        source=source,
        target=parse_table(target_table, schema) if target_table else target,
        id_fields=id_fields,
        text_fields=text_fields or (() if template else ("text",)),
        template=template,
        into_column=into_column,
        columns=TargetColumns().renamed(dict(target_columns)),
        **settings,
    )


def check_name(name: str) -> None:
    """Raise UsageError unless a pipeline can be called `name`."""
    if not name or not name.isprintable() or len(name) > 100:
        raise UsageError("a pipeline's name has 1 to 100 printable characters")


def check_max_attempts(max_attempts: int) -> None:
    """Raise UsageError unless a record can be tried so often."""
    if not 1 <= max_attempts <= MAX_ATTEMPTS:
        raise UsageError(
            f"--max-attempts {max_attempts}: give at least 1, and at most {MAX_ATTEMPTS:,}"
        )


def check_priority(priority: int) -> None:
    """Raise UsageError unless it is a priority."""
    if not 1 <= priority <= MAX_PRIORITY:
        raise UsageError(f"--priority {priority}: give a number from 1 to {MAX_PRIORITY}")


def _check_columns(names: tuple[str, ...], option: str) -> None:
    for name in names:
        check_identifier(name)
        if names.count(name) > 1:
            raise UsageError(f"{option} names '{name}' twice")
    if option == "--id-field" and not names:
        raise UsageError("name the key of the source: --id-field NAME")
