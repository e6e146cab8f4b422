"""Checks that the settings of a pipeline go together, as far as no database is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pgqueue_embed.db.names import check_identifier
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import check_options
from pgqueue_embed.pipeline.partitioning import parse_partitioning
from pgqueue_embed.pipeline.spec import PipelineSpec

# What the name of a pipeline's next generation ends in.
NEXT_NAME = " (next)"


def checked(spec: PipelineSpec) -> PipelineSpec:
    """Return `spec` with all that follows from it: the target's key columns, a column's table.

    Raises UsageError for values that cannot work. What is checked already stays as it is.
    """
    check_name(spec.name.removesuffix(NEXT_NAME))
    check_options(spec)
    if not spec.id_fields:
        raise UsageError("name the key of the source: --id-field NAME")
    _check_document(spec)
    _check_overlap(spec)
    if spec.quantize != "none" and spec.index_method is None:
        raise UsageError(f"--quantize {spec.quantize} is of an index; add --index hnsw")
    return _check_target(replace(spec, columns=spec.columns.for_key(spec.id_fields)))


def check_one_document(text_fields: Sequence[str], template: str | None) -> None:
    """Raise UsageError where both columns and a template are given for the document."""
    if text_fields and template is not None:
        raise UsageError("--text-field and --template both make the document; give one of them")


def _check_document(spec: PipelineSpec) -> None:
    check_one_document(spec.text_fields, spec.template)
    if not spec.text_fields and spec.template is None:
        raise UsageError("name the column with the text: --text-field NAME")
    for name in spec.recipe.names():
        check_identifier(name)


def _check_target(spec: PipelineSpec) -> PipelineSpec:
    if spec.into_column is None:
        if spec.source == spec.target:
            raise UsageError(
                f"{spec.source} cannot be source and target at once; for vectors in a column"
                " of it: --chunking none --into-column NAME"
            )
        _check_words(spec)
        _check_ids(spec)
        _check_copied(spec)
        _check_partitioned(spec)
        return spec
    _check_column(spec)
    columns = replace(spec.columns, embedding=spec.into_column)
    return replace(spec, target=spec.source, columns=columns)


def _check_column(spec: PipelineSpec) -> None:
    for option, given in _of_tables(spec):
        if given:
            raise UsageError(f"{option} belongs to a target table; leave it out, or --into-column")
    if spec.chunking != "none":
        raise UsageError(
            f"--into-column {spec.into_column}: a row has room for one vector; add --chunking"
            " none, or leave it out"
        )
    if spec.into_column in (*spec.id_fields, *spec.recipe.names()):
        raise UsageError(
            f"--into-column {spec.into_column}: the record is read from that column; name"
            " another one"
        )
    if spec.into_column in {*spec.columns.names()} - {spec.columns.embedding}:
        raise UsageError(
            f"--into-column {spec.into_column}: a search calls something else by that name;"
            " name another one"
        )


def _of_tables(spec: PipelineSpec) -> Iterator[tuple[str, bool]]:
    """Yield the options that go with a target table alone, and whether they are given."""
    yield "--no-text", not spec.text
    yield "--no-ids", not spec.ids
    yield "--copy-columns", bool(spec.copy_columns)
    yield "--foreign-key", spec.foreign_key
    yield "--view", spec.view
    yield "--lexical", spec.lexical
    yield "--partition-by", spec.partition_by is not None


def _check_words(spec: PipelineSpec) -> None:
    if spec.lexical and not spec.text:
        raise UsageError(
            "--lexical indexes the words of texts that are stored, and --no-text stores none; leave"
            " one of them out"
        )


def _check_copied(spec: PipelineSpec) -> None:
    own = [*(spec.columns.of_table(text=True, ids=spec.ids)), *_of_view(spec)]
    for name in spec.copy_columns:
        if name in own:
            raise UsageError(
                f"--copy-columns {name}: the target table has a column of that name; call its"
                " own one otherwise with --target-column"
            )


def _of_view(spec: PipelineSpec) -> Iterator[str]:
    """Yield what a table has that stores no texts; its view has the usual name for them."""
    if not spec.text:
        yield spec.columns.text_hash


def _check_ids(spec: PipelineSpec) -> None:
    if spec.foreign_key and not spec.ids:
        raise UsageError(
            "--foreign-key takes chunks along when a key changes, and whose they were is told by"
            " their chunk_id, which --no-ids leaves out; leave out one of them"
        )


def _check_partitioned(spec: PipelineSpec) -> None:
    if spec.partition_by is None:
        return
    column = parse_partitioning(spec.partition_by).column
    if column is not None and column not in spec.id_fields:
        key = ",".join((column, *spec.id_fields))
        raise UsageError(
            f"--partition-by {spec.partition_by}: {column} is no column of the key, so that chunks"
            f" would be found in no one part; make it one, --id-field {key} (what is unique stays"
            " so), or give hash:16"
        )


def _check_overlap(spec: PipelineSpec) -> None:
    if not 0 <= 2 * spec.overlap_tokens < spec.chunk_tokens:
        raise UsageError(
            f"--overlap-tokens {spec.overlap_tokens}: give 0 to {(spec.chunk_tokens - 1) // 2},"
            f" less than half of --chunk-size {spec.chunk_tokens}"
        )


def check_name(name: str) -> None:
    """Raise UsageError unless a person can call a pipeline `name`."""
    if name.endswith(NEXT_NAME):
        raise UsageError(
            f"{name} would be the next generation of {name.removesuffix(NEXT_NAME)};"
            " give it another name"
        )
    if not name or not name.isprintable() or len(name) > 100:
        raise UsageError("a pipeline's name has 1 to 100 printable characters")
