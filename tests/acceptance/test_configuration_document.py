"""docs/configuration-file.md: its files are applied as they stand, and its tables are complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue_embed.configuration import declared_database, read_toml
from pgqueue_embed.configuration.database import PARTS
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS
from pgqueue_embed.pipeline.target_columns import TargetColumns
from scripts.option_pages import PAGE, SCHEMA, page, schema
from tests.acceptance.test_quickstart import load_reports
from tests.support.commands import Ran, pgembed
from tests.support.documents import blocks, marked_block, tables
from tests.support.models import share_loaded_models
from tests.support.rows import one_value

DOCUMENT = PAGE


@pytest.fixture(autouse=True)
def _model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    share_loaded_models(monkeypatch)


def written(mark: str, folder: Path) -> Path:
    """Return the document's file of this mark as a file."""
    path = folder / "pgembed.toml"
    path.write_text(marked_block(DOCUMENT, f"{mark}: executed by the tests", "toml"), "utf-8")
    return path


def applied(conninfo: str, path: Path) -> Ran:
    """Apply a file, which then is how the database is."""
    ran = pgembed(conninfo, "apply", str(path), "--yes")
    assert (ran.error, ran.exit_code) == (None, 0)
    assert pgembed(conninfo, "apply", str(path), "--dry-run").exit_code == 0
    return ran


def test_example_is_applied_and_printed_as_documented(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    load_reports(connection, 3)
    path = written("example", tmp_path)
    assert declared_database(path) == {"host": "db.lan", "dbname": "reports", "user": "app"}
    printed = [line.rstrip() for line in applied(conninfo, path).stdout.splitlines()]
    (output,) = blocks(DOCUMENT, "")
    first, end = output.split("…\n")
    beginning = first.splitlines()
    assert printed[: len(beginning)] == beginning
    assert end.strip() in printed
    _, context = load_pipelines(connection)
    assert context.document.recipe.template == "Report $mdr_text_key\n\n$foi_text"
    assert (context.spec.chunk_tokens, context.spec.priority, context.spec.columns.embedding) == (
        *(200, 20),
        "vector",
    )


def test_declared_index_is_that_of_the_file(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    load_reports(connection, 3)
    path = tmp_path / "pgembed.toml"
    mark = "declared: executed by the tests"
    path.write_text(marked_block(DOCUMENT.with_name("search.md"), mark, "toml"), "utf-8")
    applied(conninfo, path)
    (pipeline,) = load_pipelines(connection)
    assert (pipeline.spec.index_method, pipeline.spec.quantize) == ("hnsw", "halfvec")
    path.write_text(pgembed(conninfo, "show", "--toml").stdout, "utf-8")
    assert "quantize = " in path.read_text("utf-8")
    assert pgembed(conninfo, "apply", str(path), "--dry-run").exit_code == 0


def test_file_for_users_of_macm4vecflow_makes_their_tables(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    connection.execute("create schema fda_data")
    connection.execute("create table fda_data.event_mdr_text (id bigint primary key, text text)")
    applied(conninfo, written("MacM4VecFlow", tmp_path))
    columns = one_value(
        connection,
        "select array_agg(attname::text order by attnum) from pg_attribute"
        " where attrelid = 'fda_data.event_text_vectors'::regclass and attnum > 0",
    )
    theirs = ["id", "report_number", "chunk_id", "text_chunk", "embedding", "created_at"]
    ours = ["chunk_index", "start_char", "end_char", "tokens"]
    assert [name for name in columns if name not in ours] == theirs
    assert set(ours) < set(columns)


def rows(title: str) -> Iterator[list[str]]:
    (table,) = [table for table in tables(DOCUMENT) if table[0][0] == title]
    yield from table[1:]


def test_page_and_schema_are_as_the_options_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: make docs"
    assert SCHEMA.read_text("utf-8") == schema(), "run: make docs"
    assert [row[0] for row in rows("key")] == [f"`{name}`" for name in PIPELINE_OPTIONS]


def test_schema_knows_what_is_read(tmp_path: Path) -> None:
    """What `apply` takes, an editor must not mark, and the other way round."""
    properties = json.loads(schema())["properties"]
    assert properties["database"]["properties"].keys() == {"dsn", *PARTS}
    pipeline = properties["pipelines"]["additionalProperties"]
    for name, value in read_toml(written("example", tmp_path))["pipelines"].items():
        assert value.keys() <= pipeline["properties"].keys(), name
        assert value.keys() >= set(pipeline["required"]), name
    target_column = pipeline["properties"]["target_column"]
    assert target_column["properties"].keys() == vars(TargetColumns()).keys()


def test_every_key_of_the_database_is_documented() -> None:
    named = " ".join(row[0] for row in rows("key of `[database]`"))
    assert {f"`{name}`" for name in ("dsn", *PARTS)} == set(named.replace(",", "").split())
