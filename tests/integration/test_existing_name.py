"""`run` and `create --if-not-exists` on a name that is taken: equal settings go on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgqueue_embed.configuration.existing import make_or_keep, refuse_differences
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.create import make
from pgqueue_embed.pipeline.options import ALTERABLE, PIPELINE_OPTIONS
from pgqueue_embed.pipeline.spec import PipelineSpec
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import FAKE_MODEL
from tests.support.pipelines import REPORTS, make_pipeline, prepare_with_fake_model

SOURCE = ("--source-table", "reports", "--text-field", "body")

# An option, how the pipeline has it, said in a way that is another text, and something else.
ASKED: dict[str, tuple[Any, Any]] = {
    "source_table": ("reports", "notes"),
    "target_table": ("public.reports_chunks", "other.reports_chunks"),
    "into_column": (None, "vector"),
    "id_field": (("id",), ("id", "part")),
    "text_field": (("body",), ("title",)),
    "template": (None, "$body!"),
    "chunk_template": (None, "$chunk!"),
    "where": (None, "id < 5"),
    "target_column": ({"embedding": "embedding"}, {"embedding": "vector"}),
    "text": (True, False),
    "ids": (True, False),
    "copy_columns": (None, ("state",)),
    "foreign_key": (False, True),
    "view": (False, True),
    "partition_by": (None, "hash:4"),
    "trust_owners": (False, True),
    "vector_type": ("vector", "halfvec"),
    "truncate_dim": (None, 4),
    "model": (FAKE_MODEL.name, "another/model"),
    "document_prompt": (None, "passage: "),
    "query_prompt": (None, "query: "),
    "control_tokens": (False, True),
    "pooling": (None, "mean"),
    "chunking": ("tokens", "none"),
    "chunk_size": (16, 128),
    "overlap_tokens": (4, 20),
    "max_attempts": (3, 5),
    "priority": (10, 20),
    "index": (None, "hnsw"),
    "quantize": ("none", "halfvec"),
    "lexical": (False, True),
    "sync": (False, True),
}


def test_each_option_is_compared(connection: Connection) -> None:
    make_source(connection, texts(3))
    make_pipeline(connection)
    assert ASKED.keys() | {"db_schema"} == PIPELINE_OPTIONS.keys()
    for key, (same, _) in ASKED.items():
        if same is not None:
            refuse_differences(connection, "reports", {key: same})
    refuse_differences(connection, "reports", {"vector_type": "auto"})
    for key, (_, another) in ASKED.items():
        with pytest.raises(UsageError, match=f"is there already, with {key}") as caught:
            refuse_differences(connection, "reports", {key: another})
        way = "sync" if key == "sync" else "alter" if key in ALTERABLE else "another name"
        assert way in str(caught.value)
        if key in ALTERABLE and another is True:
            assert f" {ALTERABLE[key].flag}" in str(caught.value)


def test_table_is_looked_for_in_the_schema_that_is_named(connection: Connection) -> None:
    make_source(connection, texts(3))
    make_pipeline(connection)
    asked = {"source_table": "reports", "db_schema": "public"}
    refuse_differences(connection, "reports", asked)
    with pytest.raises(UsageError, match=r"source_table public\.reports \(not other\.reports\)"):
        refuse_differences(connection, "reports", {**asked, "db_schema": "other"})


@pytest.mark.parametrize("command", [("run",), ("create", "--if-not-exists")])
def test_line_that_was_copied_for_a_second_table_is_refused(
    conninfo: str, connection: Connection, command: tuple[str, ...]
) -> None:
    make_source(connection, texts(3))
    make_source(connection, texts(3), table="notes")
    make_pipeline(connection)
    verb, *flags = command
    ran = pgembed(conninfo, verb, "reports", *flags, "--source-table", "notes")
    assert ran.exit_code == 2
    assert ran.error is not None
    assert "source_table public.reports (not public.notes); nothing was done" in ran.error
    assert "another name" in ran.error
    ran = pgembed(conninfo, verb, "reports", *flags, *SOURCE, "--chunk-size", "64")
    assert ran.exit_code == 2
    assert ran.error is not None
    assert "pgembed alter reports --chunk-size 64" in ran.error


def test_equal_settings_and_those_that_nobody_gave_go_on(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(3))
    make_pipeline(connection, priority=20)
    ran = pgembed(conninfo, "create", "reports", "--if-not-exists", *SOURCE)
    assert (ran.exit_code, ran.error) == (0, None)
    assert "was left as it is" in ran.stdout


def test_many_sessions_that_make_the_same_pipeline_at_once_all_go_on(
    conninfo: str, connection: Connection
) -> None:
    make_source(connection, texts(3))
    spec = PipelineSpec(
        name="reports",
        source=REPORTS,
        target=Table(schema="public", name="reports_vectors"),
        text_fields=("body",),
    )
    together = threading.Barrier(6)

    def first_run(_: int) -> bool:
        with connect(conninfo) as session:

            def create() -> object:
                together.wait()
                prepared = prepare_with_fake_model(session, spec, FAKE_MODEL.name)
                return make(session, prepared)

            asked = {"source_table": "reports", "text_field": ("body",)}
            return make_or_keep(session, "reports", asked, create) is not None

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(first_run, range(6)))
    assert sum(made) == 1


def test_what_is_wrong_with_the_tables_is_still_said(connection: Connection) -> None:
    make_source(connection, texts(3))

    def create() -> object:
        raise UsageError("no such table")

    with pytest.raises(UsageError, match="no such table"):
        make_or_keep(connection, "reports", {}, create)
