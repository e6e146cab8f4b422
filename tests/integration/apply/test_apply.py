"""pgembed apply: the database is brought to what a file declares, or left as it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli.declared_pipelines import read_pipelines
from pgqueue_embed.configuration.apply import Applied, taking_turns
from pgqueue_embed.configuration.apply import apply as carry_out
from pgqueue_embed.configuration.plan import make_plan
from pgqueue_embed.db.locks import APPLY_LOCK
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.applying import DECLARED, REPORTS, apply, declare, state
from tests.support.commands import pgembed
from tests.support.conditions import wait_until
from tests.support.fakes import FAKE_MODEL
from tests.support.oracle import assert_converged
from tests.support.rows import one_value
from tests.support.working import drain

PREPARED = DECLARED


@pytest.mark.on_both_servers
def test_pipeline_of_the_file_is_made_and_can_be_embedded(
    conninfo: str, connection: Connection, session: Session, file: Path
) -> None:
    ran = apply(conninfo, file)
    assert "+ reports: new" in ran.stdout
    assert "made pipeline reports: body of public.reports → public.reports_chunks" in ran.stdout
    pipeline = load_pipeline(connection, "reports")
    assert (pipeline.spec.chunk_tokens, pipeline.spec.overlap_tokens, pipeline.spec.priority) == (
        16,
        4,
        10,
    )
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline)
    assert_converged(connection, "reports")


def test_person_is_asked_and_may_say_no(conninfo: str, connection: Connection, file: Path) -> None:
    before = state(connection)
    assert pgembed(conninfo, "apply", str(file), answer="n\n").exit_code == 1
    assert pgembed(conninfo, "apply", str(file), answer="").exit_code == 1
    assert state(connection) == before
    assert pgembed(conninfo, "apply", str(file), answer="y\n").exit_code == 0
    assert len(load_pipelines(connection)) == 1


def test_dry_run_shows_and_tells_by_its_exit_code(
    conninfo: str, connection: Connection, file: Path
) -> None:
    before = state(connection)
    ran = pgembed(conninfo, "apply", str(file), "--dry-run")
    assert ran.exit_code == 3
    assert "1 new, 0 to be altered, 0 unchanged" in ran.stdout
    assert state(connection) == before


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("source_table = 'absent'", "pipeline 'letters': "),
        ("source_table = 'reports'\ntext_field = 'absent'", "has no column 'absent'"),
        ("source_table = 'reports'\ntext_field = 'body'\nwhere = 'nonsense'", "where"),
        ("source_table = 'reports'\ntext_field = 'body'\ntarget_table = 'reports'", "source and t"),
        ("source_table = 'reports'\ntext_field = 'body'\ntarget_table = 'a.b'", "no schema a"),
    ],
)
@pytest.mark.parametrize("option", ["--yes", "--dry-run"])
def test_nothing_is_made_when_one_of_the_pipelines_cannot_be(
    conninfo: str, connection: Connection, file: Path, more: str, complaint: str, option: str
) -> None:
    before = state(connection)
    file.write_text(f"{REPORTS}\n[pipelines.letters]\n{more}\n", encoding="utf-8")
    ran = pgembed(conninfo, "apply", str(file), option)
    assert ran.error is not None
    assert complaint in ran.error
    assert f"{file}, pipeline 'letters': " in ran.error
    assert (ran.exit_code, "--" in ran.error) == (2, False)
    assert state(connection) == before


def test_failure_in_the_midst_leaves_nothing_behind(
    conninfo: str, connection: Connection, file: Path
) -> None:
    before = state(connection)
    second = REPORTS.replace(".reports]", ".letters]").replace("reports_chunks", "letters_chunks")
    file.write_text(REPORTS + second, encoding="utf-8")
    connection.execute(
        "create function public.refuse() returns event_trigger language plpgsql as $$ begin"
        " if to_regclass('public.letters_chunks') is not null then"
        " raise insufficient_privilege using message = 'not here'; end if; end $$"
    )
    connection.execute(
        "create event trigger refuse on ddl_command_end when tag in ('CREATE TABLE')"
        " execute function public.refuse()"
    )
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    assert ran.error is not None
    assert "pipeline 'letters': cannot create public.letters_chunks: not here" in ran.error
    connection.execute("drop event trigger refuse")
    assert state(connection) == before


def test_vectors_in_a_column_of_the_source_are_declared_and_shown(
    conninfo: str, connection: Connection, file: Path
) -> None:
    text = REPORTS.replace("target_table", "into_column").replace("reports_chunks", "vector")
    text = text.replace("chunk_size = 16", "").replace("overlap_tokens = 4", "chunking = 'none'")
    other = text.replace(".reports]", ".others]").replace('"vector"', '"other"')
    file.write_text(text + other, encoding="utf-8")
    assert "2 new" in apply(conninfo, file).stdout
    file.write_text(pgembed(conninfo, "show", "--toml").stdout, encoding="utf-8")
    assert pgembed(conninfo, "apply", str(file), "--dry-run").exit_code == 0
    declare(file, FAKE_MODEL.name, "other/model")
    assert "by a new generation" in apply(conninfo, file).stdout
    assert pgembed(conninfo, "show", "--toml").stdout == file.read_text(encoding="utf-8")
    declare(file, '"other"', '"vector"')
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    assert "is that of pipeline 'reports' too; name another: into_column = …" in str(ran.error)


def apply_here(conninfo: str, file: Path) -> list[Applied]:
    """Do what the command does, without its output, which is one for all threads."""
    with connect(conninfo) as session, taking_turns(conninfo):
        return carry_out(session, make_plan(session, read_pipelines(file)))


def test_two_machines_that_apply_at_once_take_turns(
    conninfo: str, connection: Connection, file: Path
) -> None:
    with connect(conninfo) as holder, ThreadPoolExecutor() as pool:
        with holder.transaction():
            holder.execute("select pg_advisory_xact_lock(%s)", (APPLY_LOCK,))
            waiting = [pool.submit(apply_here, conninfo, file) for _ in range(2)]
            wait_until(lambda: waiting_for_advice(connection) == 2, "both wait for their turn")
            assert load_pipelines(connection) == []
        done = [each.result(timeout=60) for each in waiting]
    assert sorted(map(len, done)) == [0, 1]
    assert len(load_pipelines(connection)) == 1


def waiting_for_advice(connection: Connection) -> int:
    query = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    return int(one_value(connection, query))


def test_what_was_agreed_to_must_still_be_what_is_to_be_done(
    conninfo: str,
    connection: Connection,
    reports: Pipeline,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(file, "chunk_size", "priority = 30\nchunk_size")

    def confirm(*_: object, **__: object) -> None:
        connection.execute("update pgembed.pipelines set priority = 20")

    monkeypatch.setattr("typer.confirm", confirm)
    ran = pgembed(conninfo, "apply", str(file))
    assert ran.error is not None
    assert "pipelines were altered meanwhile; nothing was done" in ran.error
    assert load_pipeline(connection, "reports").spec.priority == 20


def test_database_without_the_schema_names_the_command(empty_conninfo: str, file: Path) -> None:
    ran = pgembed(empty_conninfo, "apply", str(file))
    assert ran.error is not None
    assert "pgembed migrate" in ran.error
