"""pgembed apply and show: the database is brought to what a file declares, or left as it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli.declared_pipelines import read_pipelines
from pgqueue_embed.configuration.apply import Applied, taking_turns
from pgqueue_embed.configuration.apply import apply as carry_out
from pgqueue_embed.configuration.plan import compare
from pgqueue_embed.db.locks import APPLY_LOCK
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.alter import abort
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.generations import successor_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import is_on
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.commands import Ran, pgembed
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FAKE_MODEL, FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import prepare_with_fake_model
from tests.support.rows import one_value
from tests.support.working import drain

REPORTS = f"""
[pipelines.reports]
source_table = "reports"
target_table = "reports_chunks"
text_field = "body"
model = "{FAKE_MODEL.name}"
chunk_size = 16
overlap_tokens = 4
"""


@pytest.fixture(autouse=True)
def _prepared(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source, and no model."""
    make_source(connection, [*texts(10), None])
    monkeypatch.setattr("pgqueue_embed.configuration.apply.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _pipeline: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pgembed.toml"
    path.write_text(REPORTS, encoding="utf-8")
    return path


@pytest.fixture
def reports(conninfo: str, connection: Connection, file: Path) -> Pipeline:
    """The pipeline of the file, made."""
    assert pgembed(conninfo, "apply", str(file), "--yes").exit_code == 0
    return load_pipeline(connection, "reports")


def declare(file: Path, old: str, new: str) -> None:
    """Change the file."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def apply(conninfo: str, file: Path) -> Ran:
    """Apply the file, twice: the second time there is nothing to do."""
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    if ran.error is None:
        assert ran.exit_code == 0
        assert "nothing to do" in pgembed(conninfo, "apply", str(file), "--yes").stdout
        assert pgembed(conninfo, "apply", str(file), "--dry-run").exit_code == 0
    return ran


def state(connection: Connection) -> list[object]:
    """Return the pipelines and the tables that there are."""
    relations = connection.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1"
    )
    return [load_pipelines(connection), relations.fetchall()]


# Making


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


# Altering


def test_settings_that_leave_vectors_alone_are_altered_at_once(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size", "priority = 30\nmax_attempts = 7\nchunk_size")
    ran = apply(conninfo, file)
    assert "10 → 30" in ran.stdout
    assert "at once" in ran.stdout
    (altered,) = load_pipelines(connection)
    assert (altered.id, altered.spec.priority, altered.spec.max_attempts) == (reports.id, 30, 7)


def test_capture_is_turned_on_and_off_and_what_was_missed_is_queued(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size", "sync = true\nchunk_size")
    ran = apply(conninfo, file)
    assert "false → true" in ran.stdout
    assert "queued 11 records that were new" in ran.stdout
    assert is_on(connection, reports)
    file.write_text(pgembed(conninfo, "show", "--toml").stdout, encoding="utf-8")
    assert "sync = true" in file.read_text(encoding="utf-8")
    declare(file, "sync = true", "sync = false")
    assert "at once" in apply(conninfo, file).stdout
    assert not is_on(connection, reports)


def test_new_pipeline_captures_from_the_beginning_or_is_not_made(
    conninfo: str, connection: Connection, file: Path
) -> None:
    declare(file, "chunk_size", "sync = true\nchunk_size")
    connection.execute("alter table public.reports rename to kept")
    connection.execute("create view public.reports as select * from public.kept")
    before = state(connection)
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    assert f"{file}, pipeline 'reports': " in str(ran.error)
    assert state(connection) == before
    connection.execute("drop view public.reports")
    connection.execute("alter table public.kept rename to reports")
    apply(conninfo, file)
    assert is_on(connection, load_pipeline(connection, "reports"))


def test_setting_that_is_no_longer_in_the_file_goes_back_to_its_default(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size", "priority = 30\nchunk_size")
    apply(conninfo, file)
    file.write_text(REPORTS, encoding="utf-8")
    apply(conninfo, file)
    assert load_pipeline(connection, "reports").spec.priority == reports.spec.priority


@pytest.mark.on_both_servers
def test_change_of_vectors_begins_a_generation_that_is_queued_and_can_take_over(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline, file: Path
) -> None:
    enqueue(connection, reports, Selection())
    drain(session, reports)
    declare(file, "chunk_size = 16", "chunk_size = 8\npriority = 30")
    declare(file, "overlap_tokens = 4", "overlap_tokens = 0")
    ran = apply(conninfo, file)
    assert "16 → 8" in ran.stdout
    assert "by a new generation" in ran.stdout
    assert "queued 11 records for it" in ran.stdout
    assert "pgembed alter reports --switch --wait" in ran.stdout
    present, coming = load_pipelines(connection)
    assert (present.spec.chunk_tokens, coming.spec.chunk_tokens, present.spec.priority) == (
        16,
        8,
        30,
    )

    drain(session, coming, chunker=fake_chunker(8, 0))
    switch(connection, present)
    assert "= reports: unchanged" in pgembed(conninfo, "apply", str(file)).stdout
    assert_converged(connection, "reports")


def test_generation_in_progress_counts_as_done_and_changes_at_once_go_on(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size = 16", "chunk_size = 12")
    apply(conninfo, file)
    ran = pgembed(conninfo, "apply", str(file))
    assert "its next generation is as in the file, and in progress" in ran.stdout
    declare(file, "chunk_size", "priority = 40\nchunk_size")
    apply(conninfo, file)
    assert [each.spec.priority for each in load_pipelines(connection)] == [40, 40]


def test_generation_with_other_settings_is_to_be_ended_first(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size = 16", "chunk_size = 12")
    apply(conninfo, file)
    before = state(connection)
    declare(file, "chunk_size = 12", "chunk_size = 10")
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    assert ran.error == (
        f"{file}, pipeline 'reports': its next generation has chunk_size 12, and the file says 10;"
        " write it so, or end that generation first: pgembed alter reports --switch, or --abort"
    )
    assert state(connection) == before
    abort(connection, reports)
    assert "16 → 10" in apply(conninfo, file).stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('text_field = "body"', "template = '$id: $body'"),
        ("chunk_size", "chunk_template = '$id: $chunk'\nchunk_size"),
        (f'model = "{FAKE_MODEL.name}"', 'model = "other/model"'),
        ("chunk_size", "chunking = 'none'\nchunk_size"),
        ("chunk_size = 16", ""),
    ],
)
def test_recipe_model_and_chunks_are_altered_there_and_back(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path, old: str, new: str
) -> None:
    declare(file, old, new)
    assert "by a new generation" in apply(conninfo, file).stdout
    switch(connection, reports)
    assert "= reports: unchanged" in pgembed(conninfo, "apply", str(file)).stdout
    file.write_text(REPORTS, encoding="utf-8")
    assert "by a new generation" in apply(conninfo, file).stdout
    switch(connection, load_pipeline(connection, "reports"))
    assert "= reports: unchanged" in pgembed(conninfo, "apply", str(file)).stdout


def test_type_of_vectors_is_altered_by_its_name_and_stays_where_it_is_left_open(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    file.write_text(f'{REPORTS}vector_type = "halfvec"\n', encoding="utf-8")
    assert "by a new generation" in apply(conninfo, file).stdout
    switch(connection, reports)
    for left_open in (REPORTS, f'{REPORTS}vector_type = "auto"\n'):
        file.write_text(left_open, encoding="utf-8")
        assert "= reports: unchanged" in pgembed(conninfo, "apply", str(file)).stdout
    file.write_text(f'{REPORTS}vector_type = "vector"\n', encoding="utf-8")
    assert "by a new generation" in apply(conninfo, file).stdout


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"reports"', '"letters"', "source_table"),
        ('"reports_chunks"', '"others"', "target_table"),
        ("chunk_size", "id_field = 'other'\nchunk_size", "id_field"),
        ("chunk_size", "target_column.embedding = 'vector'\nchunk_size", "target_column"),
    ],
)
def test_what_cannot_be_altered_is_refused_with_the_way_out(
    conninfo: str,
    connection: Connection,
    reports: Pipeline,
    file: Path,
    old: str,
    new: str,
    key: str,
) -> None:
    before = state(connection)
    declare(file, old, new)
    declare(file, "chunk_size = 16", "chunk_size = 12")
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    assert ran.error is not None
    assert f"pipeline 'reports': {key} cannot be altered from " in ran.error
    assert "remove this one first: pgembed drop reports" in ran.error
    assert state(connection) == before


def test_renamed_pipeline_is_recognised_by_its_target_table(
    conninfo: str, reports: Pipeline, file: Path
) -> None:
    declare(file, "[pipelines.reports]", "[pipelines.'my reports']")
    ran = pgembed(conninfo, "apply", str(file), "--yes")
    assert ran.error is not None
    assert "pgembed alter reports --rename 'my reports'" in ran.error
    pgembed(conninfo, "alter", "reports", "--rename", "my reports")
    assert "nothing to do" in apply(conninfo, file).stdout


def test_pipelines_that_the_file_does_not_have_are_left_alone(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size = 16", "chunk_size = 12")
    apply(conninfo, file)
    make_source(connection, texts(2), table="letters")
    file.write_text(
        "[pipelines.letters]\nsource_table = 'letters'\ntext_field = 'body'", encoding="utf-8"
    )
    ran = apply(conninfo, file)
    assert "? reports: not in the file, left alone" in ran.stdout
    assert "reports (next)" not in ran.stdout
    assert len(load_pipelines(connection)) == 3


# Together


def apply_here(conninfo: str, file: Path) -> list[Applied]:
    """Do what the command does, without its output, which is one for all threads."""
    with connect(conninfo) as session, taking_turns(conninfo):
        return carry_out(session, compare(session, read_pipelines(file)))


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


# Showing


def test_what_is_shown_as_toml_is_applied_as_nothing_to_do(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    name = 'a.b "quoted" 报告'
    connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
    make_source(connection, texts(3), table=name, schema=name, id_field="a,b", text_field=name)
    more = f"""
    [pipelines.'{name}']
    source_table = '"a.b ""quoted"" 报告"."a.b ""quoted"" 报告"'
    id_field = '"a,b"'
    template = '''
    Title\\n
    ${{{name}}}
    '''
    chunk_template = '${{a,b}}: $chunk'
    where = "true -- 100 %"
    target_column = {{ embedding = "vector", fulltext_id = "key" }}
    """
    file.write_text(REPORTS + more, encoding="utf-8")
    apply(conninfo, file)
    declare(file, "chunk_size = 16", "chunk_size = 12")
    apply(conninfo, file)

    shown = pgembed(conninfo, "show", "--toml")
    file.write_text(shown.stdout, encoding="utf-8")
    assert "nothing to do" in pgembed(conninfo, "apply", str(file), "--yes").stdout
    one = pgembed(conninfo, "show", name, "--toml")
    file.write_text(one.stdout, encoding="utf-8")
    assert pgembed(conninfo, "apply", str(file), "--dry-run").exit_code == 0


def test_settings_are_shown_with_those_of_the_next_generation(
    conninfo: str, connection: Connection, reports: Pipeline, file: Path
) -> None:
    declare(file, "chunk_size = 16", "chunk_size = 12")
    apply(conninfo, file)
    lines = pgembed(conninfo, "show", "reports").stdout.splitlines()
    (line,) = [line.split() for line in lines if "chunk_size" in line]
    assert line == ["chunk_size", "16", "12"]
    (line,) = [line.split() for line in lines if "source_table" in line]
    assert line == ["source_table", "public.reports"]


def test_show_names_what_is_to_be_done_without_a_pipeline(conninfo: str) -> None:
    assert "make one: pgembed create" in pgembed(conninfo, "show").stdout
    assert pgembed(conninfo, "show", "--toml").stdout == ""
    assert "there is no pipeline 'absent'" in str(pgembed(conninfo, "show", "absent").error)


def test_options_of_the_target_table_are_declared_and_taken_back(
    conninfo: str, connection: Connection, session: Session, file: Path, reports: Pipeline
) -> None:
    own = {"copy_columns": ("body",), "foreign_key": True, "truncate_dim": 4}
    without = {"copy_columns": (), "foreign_key": False, "truncate_dim": None}
    lines = 'copy_columns = "body"\nforeign_key = true\ntruncate_dim = 4\nview = true\n'
    for old, new, values in [("text_field", lines + "text_field", own), (lines, "", without)]:
        declare(file, old, new)
        apply(conninfo, file)
        pipeline = load_pipeline(connection, "reports")
        assert pipeline.spec.view == (values is own)
        successor = successor_of(connection, pipeline)
        assert successor is not None
        assert {each: getattr(successor.spec, each) for each in own} == values
        drain(session, successor, FakeDevice(dimensions=FAKE_MODEL.dimensions))
        assert switch(connection, pipeline).spec.view == (values is own)
        assert "nothing to do" in pgembed(conninfo, "apply", str(file), "--yes").stdout
