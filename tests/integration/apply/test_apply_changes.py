"""pgembed apply where the pipeline is there: what the file says otherwise is altered."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.alter import abort
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.generations import successor_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import is_on
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.applying import DECLARED, REPORTS, apply, declare, state
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import FAKE_MODEL, FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.working import drain

PREPARED = DECLARED


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
