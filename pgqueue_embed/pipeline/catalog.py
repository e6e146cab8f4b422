"""The pipelines of a database: loaded by name, paused and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

from pgqueue_embed.db.dsn import place_if_private
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import AnyConnection, Step, Steps, run
from pgqueue_embed.errors import NotFound, PipelineReplaced
from pgqueue_embed.pipeline.missing import if_renamed, missing_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.row import COLUMNS, columns_json, from_row
from pgqueue_embed.untrusted.foreign_text import MOST_STORED_CHARACTERS, printable
from pgqueue_embed.untrusted.shell import command


def insert_pipeline(connection: Connection, values: Mapping[str, object]) -> None:
    """Insert the row of a pipeline, in the transaction that has its target."""
    query = sql.SQL("insert into pgembed.pipelines ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    connection.execute(query, values)


def pipeline_names(connection: Connection) -> list[str]:
    """Return the names of all pipelines, in order."""
    return [name for (name,) in connection.execute("select name from pgembed.pipelines order by 1")]


def load_pipelines(connection: Connection, names: Sequence[str] = ()) -> list[Pipeline]:
    """Return the pipelines called `names`, or all; raises NotFound for an unknown name."""
    found = run(connection, pipelines_read())
    return called(names, found, connection) if names else found


# Spelled out once: psycopg would quote each name again, whenever it is asked.
SELECT = (
    sql.SQL("select {} from pgembed.pipelines order by id")
    .format(sql.SQL(", ").join(map(sql.Identifier, COLUMNS)))
    .as_string(None)
)


def pipelines_read() -> Steps[list[Pipeline]]:
    """Read all pipelines."""
    return [from_row(row) for row in (yield Step(SELECT))]


def called(
    names: Sequence[str], pipelines: Sequence[Pipeline], connection: AnyConnection
) -> list[Pipeline]:
    """Return those of all pipelines that are called `names`; raises NotFound for an unknown one."""
    known = [each.name for each in pipelines]
    for name in names:
        if name not in known:
            raise NotFound(no_pipeline(name, known, place_if_private(connection.info.dsn)))
    return [each for each in pipelines if each.name in names]


def no_pipeline(name: str, known: Sequence[str], place: str) -> str:
    """Return that there is no pipeline `name` at `place`, and which ones are known there."""
    there_is = ", ".join(known) or "none yet; make one: pgembed create"
    return f"there is no pipeline '{name}'{place}; there is {there_is}"


def load_pipeline(connection: Connection, name: str) -> Pipeline:
    """Return the pipeline called `name`; raises NotFound when there is none."""
    return load_pipelines(connection, [name])[0]


STILL_THE_SAME = """
select exists (
    select
    from pgembed.pipelines
    where id = %s
        and name = %s
        and query_prompt is not distinct from %s
        and target_schema = %s
        and target_table = %s
        and target_columns ->> 'embedding' = %s
        and key_columns = %s
        and (source_schema, source_table) = (%s, %s)
        and document_columns = %s
)
"""


def is_current(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether `pipeline` is there, and what it reads and writes is as when it was loaded.

    The target is another one once generations have been switched, and names and types of the
    source's columns are followed.
    """
    return run(connection, currency_read(pipeline))


def currency_read(pipeline: Pipeline) -> Steps[bool]:
    """Do what `is_current` does."""
    source, target = pipeline.source, pipeline.target
    values = (
        *(pipeline.id, pipeline.name, pipeline.spec.query_prompt),
        *(target.schema, target.name, pipeline.spec.columns.embedding),
        columns_json(pipeline.key.columns),
        *(source.schema, source.name),
        columns_json(pipeline.document.columns),
    )
    [(is_same,)] = yield Step(STILL_THE_SAME, values)
    return bool(is_same)


# How the reason of a pause ends that a fault caused, and no person.
MEND_AND_RESUME = "; mend it and run: pgembed resume "


def pause_at_fault(connection: Connection, pipeline: Pipeline, reason: str) -> None:
    """Pause a pipeline for a fault of its tables, and say how to go on."""
    missing = run(connection, missing_of(pipeline))
    renamed = "" if missing is None else f"; {missing}; {if_renamed(pipeline)}"
    pause_pipeline(connection, pipeline, f"{reason}{renamed}{MEND_AND_RESUME}{pipeline.name}")


BY_A_PERSON = "paused by a person"


def why_paused(name: str, reason: str | None) -> str:
    """Return the stored reason of a pause, and how to go on with the pipeline by its name of now.

    A reason that asks a person names both ways out itself.
    """
    resume = command("resume", name)
    cause, is_fault, _ = (reason or "no reason was given").partition(MEND_AND_RESUME)
    if is_fault:
        return f"{cause}; mend it and run: {resume}"
    return cause if "pgembed resume" in cause else f"{cause}; go on: {resume}"


def pause_pipeline(connection: Connection, pipeline: Pipeline, reason: str) -> None:
    """Stop workers from claiming; what is claimed already is finished."""
    # By its id: a name may have been changed since the pipeline was loaded.
    connection.execute(
        "select pgembed.pause(name, %s) from pgembed.pipelines where id = %s",
        (printable(reason, MOST_STORED_CHARACTERS), pipeline.id),
    )


def is_paused(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether workers claim nothing of a pipeline."""
    query = "select state = 'paused' from pgembed.pipelines where id = %s"
    paused = connection.value(query, (pipeline.id,))
    return bool(paused)


def resume_pipeline(connection: Connection, pipeline: Pipeline) -> None:
    """Let workers claim again."""
    connection.execute(
        "select pgembed.resume(name) from pgembed.pipelines where id = %s", (pipeline.id,)
    )


def keep_pipeline(connection: Connection, pipeline: Pipeline) -> None:
    """Keep the pipeline from being dropped until the transaction ends, which queues something.

    Raises PipelineReplaced if it is gone.
    """
    keep = "select from pgembed.pipelines where id = %s for key share"
    if connection.execute(keep, (pipeline.id,)).rowcount == 0:
        raise PipelineReplaced(
            f"{pipeline.name} was replaced by its next generation, or dropped, just now"
        )
