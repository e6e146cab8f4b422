"""`pgembed doctor`: each fault is found, named and given its fix, and hides no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor import Check, Mark, examination, examine
from pgqueue_embed.doctor import database as database_checks
from pgqueue_embed.embedding import Memory, fingerprint, learnt
from pgqueue_embed.embedding.chooser import learnt_key
from pgqueue_embed.embedding.devices import choose_device
from pgqueue_embed.embedding.learnt import Learnt
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle import create as creating
from pgqueue_embed.pipeline.catalog import pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.adoptions import begin_adoption
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.models import make_tiny_model, share_loaded_models

ENGLISH = ["The pump stopped at night.", "A valve was stuck."]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _nothing_learnt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine has learnt of a model is told, too."""
    monkeypatch.setattr(learnt, "_cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(autouse=True)
def _tiny_default(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """The default model takes seconds to load; which one it is does not matter here."""
    share_loaded_models(monkeypatch)
    monkeypatch.setattr(examination, "DEFAULT_MODEL", str(tiny_model))


def make_reports(
    connection: Connection, model: Path, documents: list[str], **fields: Any
) -> Pipeline:
    spec = checked(
        PipelineSpec(
            name="reports",
            source=make_source(connection, documents),
            target=Table(schema="public", name="reports_chunks"),
            text_fields=("body",),
            **fields,
        )
    )
    return creating.create(connection, spec, str(model)).pipeline


@pytest.fixture
def reports(connection: Connection, tiny_model: Path) -> Pipeline:
    return make_reports(connection, tiny_model, ENGLISH)


@pytest.fixture
def reader(conninfo: str, connection: Connection) -> Iterator[str]:
    """A role without any right, as a connection string."""
    connection.execute("drop role if exists reader")
    connection.execute("create role reader")
    yield make_conninfo(conninfo, options="-c role=reader")
    connection.execute("drop owned by reader; drop role reader")


def faults(checks: Iterator[Check]) -> list[Check]:
    return [check for check in checks if check.mark is not Mark.OK]


def only_fault(checks: Iterator[Check]) -> Check:
    found = faults(checks)
    assert len(found) == 1, found
    return found[0]


def cut_short(conninfo: str, connection: Connection, table: str, body: str) -> None:
    """Begin to build the index `spoiled` on `table`, and do not wait for its end."""
    with connect(conninfo) as writer, writer.transaction():
        writer.execute(f"lock table {table} in row exclusive mode")
        connection.execute("set statement_timeout = '300 ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(f"create index concurrently spoiled on {table} {body}")
        connection.execute("reset statement_timeout")


def test_index_whose_build_was_cut_short_is_told_of(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    body = "using hnsw (embedding public.vector_cosine_ops)"
    cut_short(conninfo, connection, "public.reports_chunks", body)
    found = only_fault(examine(conninfo))
    assert found.finding.startswith("index spoiled is invalid: its build was cut short")
    assert "pgembed index reports" in str(found.fix)


@pytest.mark.parametrize("partition_by", [None, "hash:2"])
def test_any_other_index_whose_build_was_cut_short_is_told_of(
    conninfo: str, connection: Connection, tiny_model: Path, partition_by: str | None
) -> None:
    make_reports(connection, tiny_model, ENGLISH, partition_by=partition_by)
    table = "public.reports_chunks" if partition_by is None else "public.reports_chunks_1"
    cut_short(conninfo, connection, table, "(tokens)")
    found = only_fault(examine(conninfo))
    assert found.finding == f"index public.spoiled of {table} is invalid: its build was cut short"
    assert found.fix == 'its owner: reindex index concurrently "public"."spoiled", or drop it'


def test_index_that_an_interrupted_adoption_has_left_is_replaced_by_it(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    begin_adoption(connection, reports, ())
    cut_short(conninfo, connection, "public.reports_chunks", "(fulltext_id)")
    connection.execute("alter index spoiled rename to reports_chunks_pgembed_key")
    found = only_fault(examine(conninfo))
    assert found.finding.startswith("index public.reports_chunks_pgembed_key of")
    assert found.fix == "pgembed adopt reports"


def test_a_healthy_pipeline_has_no_faults(conninfo: str, reports: Pipeline) -> None:
    checks = list(examine(conninfo))
    assert faults(iter(checks)) == []
    subjects = [check.subject for check in checks]
    assert subjects[:6] == ["machine", "connection", "PostgreSQL", "pgvector", "schema", "rights"]
    assert set(subjects[6:]) == {"reports"}


def test_the_command_says_ready_and_exits_with_zero(conninfo: str, reports: Pipeline) -> None:
    ran = pgembed(conninfo, "doctor")
    assert ran.exit_code == 0
    assert ran.stdout.endswith("ready for work\n")
    assert "unknown to the model" in ran.stdout


def test_no_password_is_shown(conninfo: str, reports: Pipeline) -> None:
    with connect(conninfo) as session:
        password = session.info.password
    assert password
    for dsn in (conninfo, make_conninfo(conninfo, port=1), make_conninfo(conninfo, dbname="no")):
        ran = pgembed(dsn, "doctor")
        assert password not in ran.stdout + ran.stderr


def test_a_server_that_does_not_answer_is_a_failure_and_the_model_is_still_tried(
    conninfo: str,
) -> None:
    checks = list(examine(make_conninfo(conninfo, port=1)))
    assert only_fault(iter(checks)).subject == "connection"
    assert any("runs on" in check.finding for check in checks)


def test_a_failure_makes_the_command_exit_with_one(conninfo: str) -> None:
    ran = pgembed(make_conninfo(conninfo, port=1), "doctor")
    assert ran.exit_code == 1
    assert "work cannot run: 1 check failed" in ran.stdout


def test_an_empty_database_is_told_to_migrate(empty_conninfo: str) -> None:
    found = {check.subject: check for check in faults(examine(empty_conninfo))}
    assert set(found) == {"pgvector", "schema"}
    assert "pgembed migrate" in (found["schema"].fix or "")
    assert "pgembed migrate" in (found["pgvector"].fix or "")


def test_a_schema_of_another_version_is_a_failure(conninfo: str, connection: Connection) -> None:
    connection.execute(
        "update pgembed._yoyo_migration set migration_id = '9999_future'"
        " where migration_id like '0002%'"
    )
    assert "9999_future" in only_fault(examine(conninfo)).finding


def test_without_a_pipeline_the_default_model_is_tried(conninfo: str) -> None:
    checks = list(examine(conninfo))
    assert "pgembed create" in (only_fault(iter(checks)).fix or "")
    computes, runs = (check.finding for check in checks[-3:-1])
    assert re.search(r"^computes (fp32|bf16)", computes)
    assert re.search(r"runs on cpu in (fp32|bf16); 16 dimensions", runs)


def test_what_workers_have_learnt_otherwise_is_told_beside_what_is_found_now(
    conninfo: str, tiny_model: Path
) -> None:
    def told() -> list[str]:
        return [check.finding for check in examine(conninfo) if "workers" in check.finding]

    assert not told()
    key = learnt_key(choose_device("auto"), "auto", fingerprint(tiny_model).digest)
    Memory().keep(key, Learnt(variant="of this week", refused=["bf16", "fp16"]))
    assert told() == ["workers here compute of this week, as they have learnt; refused: bf16, fp16"]


def test_a_role_without_rights_is_told_which_grant_is_missing(
    connection: Connection, reports: Pipeline, reader: str
) -> None:
    assert "grant usage on schema pgembed to reader" in (only_fault(examine(reader)).fix or "")
    connection.execute("grant usage on schema pgembed to reader")
    assert "permission denied for table" in only_fault(examine(reader)).finding
    connection.execute("grant select on all tables in schema pgembed to reader")
    rights, source, target = faults(examine(reader))
    assert (
        rights.finding == "this role lacks delete, insert, update on pgembed.attempts, and 6 more"
    )
    assert "select on public.reports to reader" in (source.fix or "")
    assert "select, insert, delete on public.reports_chunks to reader" in (target.fix or "")
    assert {check.mark for check in (rights, source, target)} == {Mark.FAILED}


def test_following_the_fixes_of_a_role_without_rights_makes_it_work(
    connection: Connection, reports: Pipeline, reader: str
) -> None:
    for _ in range(5):
        found = faults(examine(reader))
        if not found:
            return
        for check in found:
            connection.execute((check.fix or "").partition(": ")[2])
    pytest.fail(f"still faulty: {found}")


def test_a_role_that_may_not_create_the_schema_is_told_so(
    empty_conninfo: str,
) -> None:
    with connect(empty_conninfo) as session:
        session.execute("drop role if exists stranger")
        session.execute("create role stranger")
        options = make_conninfo(empty_conninfo, options="-c role=stranger")
        found = {check.subject: check for check in faults(examine(options))}
        session.execute("drop role stranger")
    assert "may not create it" in found["schema"].finding
    assert "grant create on database" in (found["schema"].fix or "")


def test_a_column_that_is_gone_is_named(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute("alter table reports rename body to text")
    connection.execute("drop table reports_chunks")
    first, second = faults(examine(conninfo))
    assert first.finding == "public.reports has no column body"
    assert "pgembed alter reports --follow-source" in (first.fix or "")
    assert "reports_chunks" in second.finding
    assert first.mark is second.mark is Mark.FAILED


def test_a_paused_pipeline_is_a_warning_with_its_reason(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    pause_pipeline(connection, reports, "maintenance")
    found = only_fault(examine(conninfo))
    finding = "paused: maintenance; go on: pgembed resume reports"
    assert (found.mark, found.finding) == (Mark.WARNING, finding)


def test_another_model_than_the_pipelines_is_a_failure_that_names_the_file(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    model = make_tiny_model(tmp_path / "model")
    make_reports(connection, model, ENGLISH)
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    found = only_fault(examine(conninfo))
    assert found.mark is Mark.FAILED
    assert "tokenizer.json differ" in found.finding


def test_a_model_that_is_not_here_is_a_failure_and_the_rest_is_checked(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute("update pgembed.pipelines set model = '/no/such/folder'")
    found = only_fault(examine(conninfo))
    assert (found.mark, found.subject) == (Mark.FAILED, "reports")
    assert "/no/such/folder" in found.finding


def test_a_named_model_is_tried_as_well(conninfo: str, reports: Pipeline) -> None:
    found = only_fault(examine(conninfo, model_name="/no/such/folder"))
    assert (found.mark, found.subject) == (Mark.FAILED, "/no/such/folder")


def test_a_named_model_is_tried_as_it_is_to_be_used(conninfo: str, tiny_model: Path) -> None:
    named = ("doctor", "--model", str(tiny_model))
    ran = pgembed(conninfo, *named, "--query-prompt", r"find:\n", "--document-prompt", "none")
    assert ran.exit_code == 0, ran.error
    assert r"prompt of documents '', of queries 'find:\n'" in ran.stdout
    ran = pgembed(conninfo, *named, "--pooling", "cls")
    assert "--pooling cls: the files of model" in ran.stdout
    assert ran.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--query-prompt", "query: "), "--query-prompt says how to use a model: name it"),
        (("--control-tokens",), "--control-tokens says how to use a model: name it"),
        (("--model", "./e5", "--document-prompt", " "), "--document-prompt is empty"),
        (("--model", "./e5", "--pooling", "median"), "--pooling median: give mean or cls"),
    ],
)
def test_a_use_of_no_model_is_refused(
    conninfo: str, arguments: tuple[str, ...], message: str
) -> None:
    ran = pgembed(conninfo, "doctor", *arguments)
    assert ran.error is not None
    assert ran.error.startswith(message)


def test_text_that_the_model_cannot_read_is_a_warning_with_models_that_can(
    conninfo: str, connection: Connection, tiny_model: Path
) -> None:
    make_reports(connection, tiny_model, ["设备在使用过程中突然停止工作，护士立即更换了备用设备。"])
    found = only_fault(examine(conninfo))
    assert found.mark is Mark.WARNING
    assert "of the tokens in body are unknown" in found.finding
    for model in ("BAAI/bge-small-zh-v1.5", "intfloat/multilingual-e5-small", "BAAI/bge-m3"):
        assert model in (found.fix or "")


def test_only_the_named_pipeline_is_looked_at(
    conninfo: str, connection: Connection, reports: Pipeline, tiny_model: Path
) -> None:
    spec = checked(
        PipelineSpec(
            name="notes",
            source=make_source(connection, texts(1), table="notes"),
            target=Table(schema="public", name="notes_chunks"),
            text_fields=("body",),
        )
    )
    creating.create(connection, spec, str(tiny_model))
    connection.execute("drop table reports_chunks")
    subjects = {check.subject for check in examine(conninfo, pipeline_name="notes")}
    assert "notes" in subjects
    assert "reports" not in subjects


def test_an_unknown_pipeline_is_a_usage_error(conninfo: str, reports: Pipeline) -> None:
    with pytest.raises(UsageError, match="there is no pipeline 'nope'; there is reports"):
        list(examine(conninfo, pipeline_name="nope"))


def test_a_distant_database_and_a_wrong_clock_are_warnings(
    conninfo: str, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_checks, "SLOW_MILLISECONDS", 0.0)
    monkeypatch.setattr(database_checks, "CLOCK_SECONDS", -1.0)
    found = faults(examine(conninfo))
    assert [(check.mark, check.subject) for check in found] == [
        (Mark.WARNING, "connection"),
        (Mark.WARNING, "clock"),
    ]


def test_database_that_may_not_be_written_is_not_ready(
    conninfo: str, connection: Connection
) -> None:
    name = sql.Identifier(connection.info.dbname)
    alter = sql.SQL("alter database {} set default_transaction_read_only = on")
    connection.execute(alter.format(name))
    with connect(conninfo) as session:
        (found,) = database_checks.check_server(session)
    assert found.mark is Mark.FAILED
    assert "default_transaction_read_only" in found.finding
    assert found.fix is not None
    assert "reset default_transaction_read_only" in found.fix
