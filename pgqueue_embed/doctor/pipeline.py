"""Checks of one pipeline: its state, its tables, and how much of its text the model can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql
from tokenizers import Tokenizer

from pgqueue_embed.adopt.attach import KEY_INDEX_SUFFIX
from pgqueue_embed.db.errors import first_line, is_away, is_row_security
from pgqueue_embed.db.faults import on_users_tables
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.doctor.check import Check, failed, ok, warning
from pgqueue_embed.errors import PipelineFault
from pgqueue_embed.lifecycle.follow_source import changed_types
from pgqueue_embed.pipeline.catalog import why_paused
from pgqueue_embed.pipeline.missing import if_renamed, missing_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.quantities import percent
from pgqueue_embed.queue.adoptions import read_adoption
from pgqueue_embed.queue.capture import is_on, lacking, misfiring
from pgqueue_embed.source.trust import check_trust
from pgqueue_embed.source.unknown_tokens import READERS, WORRYING_SHARE, unknown_token_share
from pgqueue_embed.target import Right, target_of, views_of
from pgqueue_embed.target.parts import leaves
from pgqueue_embed.target.unusable_indexes import is_being_built, unusable_indexes
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.vector_search.lexical import PG_TEXTSEARCH
from pgqueue_embed.vector_search.lexical_index import lexical_indexes
from pgqueue_embed.vector_search.textsearch import find_textsearch

PUT_BACK = "put it back as it was, or drop the pipeline"


def check_tables(connection: Connection, pipeline: Pipeline) -> Iterator[Check]:
    """Check that source and target are as the pipeline knows them, and may be used."""
    subject = pipeline.name
    check_trust(connection, pipeline.spec)
    target = target_of(pipeline)
    source = [column.name for column in pipeline.source_columns]
    missing = run(connection, missing_of(pipeline))
    absent = [] if missing is None else [(missing, f"{if_renamed(pipeline)}; else {PUT_BACK}")]
    problems = [
        *(absent or _table_problems(connection, pipeline.source, source, (Right("select"),))),
        *_table_problems(connection, pipeline.target, target.written_columns, target.rights),
    ]
    yield from (failed(subject, finding, fix) for finding, fix in problems)
    if not problems:
        yield ok(subject, f"{pipeline.source} may be read, {target} written")
        yield from check_types(connection, pipeline)
    if missing is None:
        yield from _check_views(connection, pipeline)
    if pipeline.state == "paused":
        reason = connection.value(
            "select state_reason from pgembed.pipelines where id = %s", (pipeline.id,)
        )
        yield warning(subject, f"paused: {why_paused(pipeline.name, reason)}")


def check_types(connection: Connection, pipeline: Pipeline) -> Iterator[Check]:
    """Check that the source's columns are of the types that the pipeline knows."""
    changes = ", ".join(map(str, changed_types(connection, pipeline)))
    if changes:
        finding = f"columns of {pipeline.source} are of another type now: {changes}"
        yield failed(pipeline.name, finding, command("alter", pipeline.name, "--follow-source"))


def check_capture(connection: Connection, pipeline: Pipeline) -> Iterator[Check]:
    """Check that capture, if it is on, covers the partitions that came later, too."""
    if not is_on(connection, pipeline):
        return
    without = ", ".join(map(str, lacking(connection, pipeline)))
    if without:
        finding = f"what is written straight to {without} is not captured"
        yield warning(pipeline.name, finding, command("sync", pipeline.name, "--on"))
    wrong = "; ".join(misfiring(connection, pipeline))
    if wrong:
        yield warning(pipeline.name, wrong, command("sync", pipeline.name, "--on"))
    if not (without or wrong):
        yield ok(pipeline.name, f"changes of {pipeline.source} are captured")


CUT_SHORT = """
select index_name
from pgembed.vector_indexes
where pipeline = %s and not is_valid and not is_building
order by 1
"""


def check_indexes(connection: Connection, pipeline: Pipeline) -> Iterator[Check]:
    """Check that no build of an index was cut short, which writers may keep up to date."""
    of_vectors = [name for (name,) in connection.execute(CUT_SHORT, (pipeline.name,))]
    for index in of_vectors:
        finding = f"index {index} is invalid: its build was cut short, and no search uses it"
        fix = f"{command('index', pipeline.name)}, with the options it had, or drop it"
        yield warning(pipeline.name, finding, fix)
    yield from _other_indexes(connection, pipeline, of_vectors)


def _other_indexes(
    connection: Connection, pipeline: Pipeline, of_vectors: Sequence[str]
) -> Iterator[Check]:
    for table in leaves(connection, pipeline.target):
        if is_being_built(connection, table):
            continue
        for index in unusable_indexes(connection, table):
            if index.name not in of_vectors:
                finding = f"index {index} of {table} is invalid: its build was cut short"
                yield warning(pipeline.name, finding, _way_out(connection, pipeline, index))


def _way_out(connection: Connection, pipeline: Pipeline, index: Table) -> str:
    if KEY_INDEX_SUFFIX in index.name:
        adoption = read_adoption(connection, pipeline)
        if adoption is not None and not adoption.is_finished:
            return command("adopt", pipeline.name)
    return f"its owner: reindex index concurrently {index.quoted}, or drop it"


def check_words(connection: Connection, pipeline: Pipeline) -> Iterator[Check]:
    """Tell by what searches for words go, where they can be made, and what would be better."""
    indexes = lexical_indexes(connection, pipeline)
    if not indexes:
        return
    scan, index = next(iter(indexes.items()))
    how = "by pg_textsearch" if scan == PG_TEXTSEARCH else "in SQL"
    yield ok(pipeline.name, f"words are ranked {how}, by index {index}")
    extension = find_textsearch(connection, pipeline)
    if extension is None or scan == PG_TEXTSEARCH:
        return
    if extension.why_not is None:
        finding = f"pg_textsearch {extension.version} is there, and has no index of the words"
        yield warning(pipeline.name, finding, command("index", pipeline.name, "--lexical"))
    else:
        yield ok(pipeline.name, f"PostgreSQL's own index is used: {extension.why_not}")


def _check_views(connection: Connection, pipeline: Pipeline) -> Iterator[Check]:
    """Check that the pipeline's views are there, and read its source: both may be others by now."""
    for view in views_of(pipeline.spec, pipeline.key, pipeline.document):
        if not view.is_made(connection):
            finding = f"the view {view.table} is gone"
        elif not view.reads_source(connection):
            finding = f"the view {view.table} reads another table than {pipeline.source}"
        else:
            continue
        renew = command("alter", pipeline.name, "--follow-source")
        yield warning(
            pipeline.name, finding, f"{renew}, or --no-view" if view.option == "--view" else renew
        )


def _table_problems(
    connection: Connection, table: Table, columns: Sequence[str], rights: Sequence[Right]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a table, and what to do about it."""
    identifier = table.identifier
    schema, name, role = _as_typed(connection, table)
    probe = sql.SQL("select {} from {} limit 0").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), identifier
    )
    try:
        connection.execute(probe)
    except psycopg.errors.InsufficientPrivilege as error:
        if is_row_security(error):
            yield f"{table}: {first_line(error)}", f"an administrator: alter role {role} bypassrls"
            return
        grants = f"grant usage on schema {schema} to {role}; grant {_listed(rights)} on {name}"
        yield f"{table}: {first_line(error)}", f"its owner: {grants} to {role}"
        return
    except psycopg.Error as error:
        if is_away(error):
            raise
        yield f"{table}: {first_line(error)}", PUT_BACK
        return
    missing = [right for right in rights if not _has_right(connection, identifier, right)]
    if missing:
        lacking = _listed(missing)
        yield (
            f"this role lacks {lacking} on {table}",
            f"its owner: grant {lacking} on {name} to {role}",
        )


def _as_typed(connection: Connection, table: Table) -> tuple[str, str, str]:
    """Return schema, table and the current role as one writes them in SQL."""
    schema, name, role = connection.row(
        "select quote_ident(%s), format('%%I.%%I', %s::text, %s::text), quote_ident(current_user)",
        (table.schema, table.schema, table.name),
    )
    return schema, name, role


def _listed(rights: Sequence[Right]) -> str:
    return ", ".join(map(str, rights))


GRANTED = """
select case
    when %(column)s::text is null then has_table_privilege(%(table)s::regclass, %(kind)s)
    else has_column_privilege(%(table)s::regclass, %(column)s::text, %(kind)s)
end
"""


def _has_right(connection: Connection, table: sql.Identifier, right: Right) -> bool:
    if right.kind == "select":
        return True  # granted by column too, and tried already
    values = {"table": table.as_string(connection), "kind": right.kind, "column": right.column}
    granted = connection.value(GRANTED, values)
    return bool(granted)


def check_text(
    connection: Connection, pipeline: Pipeline, tokenizer: Tokenizer | None
) -> Iterator[Check]:
    """Check that the model knows the words of the source."""
    if tokenizer is None:
        yield ok(pipeline.name, f"{pipeline.model} has no tokenizer to judge the text by")
        return
    try:
        with on_users_tables(connection, f"reading {pipeline.source}"):
            share = unknown_token_share(connection, pipeline, tokenizer)
    except PipelineFault as error:
        yield failed(pipeline.name, str(error))
        return
    finding = f"{percent(share)} of the tokens in {pipeline.document} are unknown to the model"
    if share < WORRYING_SHARE:
        yield ok(pipeline.name, finding)
        return
    yield warning(
        pipeline.name,
        f"{finding}: search cannot find those parts",
        f"make a pipeline with a model that reads them: {READERS}",
    )
