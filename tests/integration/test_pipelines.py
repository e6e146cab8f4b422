"""Pipelines: made with their target or not at all, paused, resumed and dropped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from tokenizers import Tokenizer, models

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.create import Created, check_tables, create, create_pipeline, make
from pgqueue_embed.pipeline.catalog import (
    load_pipeline,
    pipeline_names,
)
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.pipeline.document import Document, Recipe
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.options import spec_of_options
from pgqueue_embed.pipeline.row import SourceShape
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.pipeline.target_columns import TargetColumns
from tests.support.corpus import make_source, texts
from tests.support.fakes import FAKE_MODEL
from tests.support.models import make_tiny_model
from tests.support.pipelines import REPORTS, make_pipeline, prepare_with_fake_model
from tests.support.rows import one_value
from tests.support.tables import TARGET, exists

REPORTS_B = Table(schema="public", name="reports_b")


RECORDS = SourceShape(
    key=Key((Column(name="id", type="bigint"),)),
    document=Document(
        recipe=Recipe(text_fields=("body",)), columns=(Column(name="body", type="text"),)
    ),
)


@pytest.fixture(autouse=True)
def _source(connection: Connection) -> None:
    make_source(connection, texts(10))


@pytest.fixture
def stranger(connection: Connection, conninfo: str) -> Iterator[Connection]:
    """A session of a role that may read the source and pgembed, and create nothing."""
    connection.execute("create role stranger login password 'stranger'")
    connection.execute("grant usage on schema public, pgembed to stranger")
    connection.execute("grant select on all tables in schema public, pgembed to stranger")
    with connect(make_conninfo(conninfo, user="stranger", password="stranger")) as session:
        yield session
    connection.execute("drop owned by stranger cascade")
    connection.execute("drop role stranger")


def spec(**fields: object) -> PipelineSpec:
    usual = {
        "name": "reports",
        "source": REPORTS,
        "target": TARGET,
        "text_fields": ("body",),
    }
    return checked(PipelineSpec(**{**usual, **fields}))  # type: ignore[arg-type]


def test_pipeline_is_loaded_as_it_was_created(connection: Connection) -> None:
    columns = TargetColumns(fulltext_id=("report_id",))
    created = make_pipeline(connection, columns=columns, max_attempts=5, vector_type="halfvec")
    assert load_pipeline(connection, "reports") == created
    assert created.spec.columns == columns
    assert (created.state, created.generation) == ("active", 1)
    assert created.key.columns == (Column(name="id", type="bigint"),)
    assert created.model_fingerprint == FAKE_MODEL.fingerprint


def test_target_is_indexed_by_record_alone_and_described(connection: Connection) -> None:
    make_pipeline(connection)
    indexed = connection.execute(
        "select substring(indexdef from '\\(.*') from pg_indexes"
        " where tablename = 'reports_chunks' order by 1"
    )
    assert indexed.fetchall() == [("(fulltext_id, chunk_index)",), ("(id)",)]
    comment = "select obj_description('public.reports_chunks'::regclass, 'pg_class')"
    assert "pipeline reports" in one_value(connection, comment)


@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
def test_vector_column_has_the_models_dimensions(connection: Connection, vector_type: str) -> None:
    make_pipeline(connection, vector_type=vector_type)
    column = one_value(
        connection,
        "select format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'public.reports_chunks'::regclass and attname = 'embedding'",
    )
    assert column == f"{vector_type}(8)"


@pytest.mark.parametrize(
    ("dimensions", "fields", "chosen"),
    [
        (767, {}, "vector"),
        (768, {}, "halfvec"),
        (1_024, {}, "halfvec"),
        (1_024, {"truncate_dim": 256}, "vector"),
        (1_024, {"vector_type": "vector"}, "vector"),
        (8, {"vector_type": "halfvec"}, "halfvec"),
    ],
)
def test_long_vectors_are_of_half_precision_unless_said_otherwise(
    connection: Connection, dimensions: int, fields: dict[str, Any], chosen: str
) -> None:
    pipeline = make_pipeline(connection, dimensions=dimensions, **fields)
    assert pipeline.spec.vector_type == chosen
    assert load_pipeline(connection, "reports") == pipeline


@pytest.mark.parametrize("there", ["vector", "halfvec"])
def test_type_of_a_column_that_is_there_is_taken(connection: Connection, there: str) -> None:
    connection.execute(f"alter table reports add embedding {there}(1024)")
    pipeline = make_pipeline(
        connection, dimensions=1_024, chunking="none", target=REPORTS, into_column="embedding"
    )
    assert pipeline.spec.vector_type == there


def test_extension_without_half_precision_is_told_of(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only the version is another one: there is no such extension to try."""
    monkeypatch.setattr(VectorCodec, "supports", lambda _, name: name == "vector")
    model = make_tiny_model(tmp_path / "long", dimensions=768)
    created = create(connection, spec(), str(model))
    assert created.pipeline.spec.vector_type == "vector"
    assert "has no halfvec (it came with 0.7)" in " ".join(created.warnings)
    assert not [each for each in made_short(connection, tmp_path).warnings if "halfvec" in each]


def made_short(connection: Connection, folder: Path) -> Created:
    model = make_tiny_model(folder / "short")
    target = Table(schema="public", name="short")
    return create(connection, spec(name="short", target=target), str(model))


def test_name_that_is_taken_is_refused(connection: Connection) -> None:
    make_pipeline(connection)
    other = Table(schema="public", name="other")
    with pytest.raises(UsageError, match=r"'reports' exists already; .*pgembed drop reports"):
        check_tables(connection, spec(target=other))
    with pytest.raises(UsageError, match="another session just now"):
        create_pipeline(connection, spec(target=other), RECORDS, FAKE_MODEL)
    assert not exists(connection, other)


def test_table_that_is_there_is_never_used_as_a_target(connection: Connection) -> None:
    connection.execute("create table public.reports_chunks (precious text)")
    with pytest.raises(UsageError, match=r"table public\.reports_chunks exists already"):
        check_tables(connection, spec())
    with pytest.raises(UsageError, match="another session just now"):
        create_pipeline(connection, spec(), RECORDS, FAKE_MODEL)
    assert pipeline_names(connection) == []


@pytest.mark.parametrize("length", [55, 56, 63])
def test_source_with_a_long_name_has_a_target_whose_name_fits(
    connection: Connection, length: int
) -> None:
    source = make_source(connection, texts(2), table="t" * length)
    made = spec_of_options("reports", {"source_table": source.name, "text_field": ("body",)})
    assert made.target.name == f"{'t' * min(length, 55)}_vectors"
    pipeline = make_pipeline(connection, source, target=made.target, view=True, foreign_key=True)
    assert exists(connection, pipeline.target)
    named = {"source_table": source.name, "text_field": ("body",), "target_table": "short"}
    assert spec_of_options("reports", named).target.name == "short"


def test_pipeline_that_is_made_is_made_whatever_its_texts_are_like(
    connection: Connection,
) -> None:
    connection.execute("create table raw (id bigint primary key, bytes bytea)")
    connection.execute("insert into raw values (1, 'fine'), (2, '\\xff')")
    connection.execute(
        "create view decoded as select id, convert_from(bytes, 'UTF8') as body from raw"
    )
    decoded = Table(schema="public", name="decoded")
    prepared = prepare_with_fake_model(connection, spec(source=decoded), FAKE_MODEL.name)
    tokenizer = Tokenizer(models.WordLevel(vocab={"[UNK]": 0}, unk_token="[UNK]"))
    created = make(connection, replace(prepared, tokenizer=tokenizer))
    assert created.pipeline == load_pipeline(connection, "reports")
    assert any("could not be measured" in each for each in created.warnings)
    # All or nothing with others, as a configuration file wants it.
    with connection.transaction():
        other = replace(prepared, spec=spec(source=decoded, name="b", target=REPORTS_B))
        make(connection, replace(other, tokenizer=tokenizer))
    assert pipeline_names(connection) == ["b", "reports"]


def test_target_in_a_schema_that_is_absent_is_refused_with_the_way_out(
    connection: Connection,
) -> None:
    absent = Table(schema='no "such"', name="chunks")
    with pytest.raises(UsageError, match='create it: create schema "no ""such"""'):
        check_tables(connection, spec(target=absent))


def test_role_that_may_not_create_a_table_is_told_so(
    connection: Connection, stranger: Connection
) -> None:
    with pytest.raises(UsageError, match=r"cannot create public\.reports_chunks: permission"):
        create_pipeline(stranger, spec(), RECORDS, FAKE_MODEL)
    assert pipeline_names(connection) == []


def test_creation_that_fails_half_way_leaves_nothing(
    connection: Connection, stranger: Connection
) -> None:
    connection.execute("grant create on schema public to stranger")
    with pytest.raises(UsageError, match="permission denied"):
        create_pipeline(stranger, spec(), RECORDS, FAKE_MODEL)
    assert not exists(connection)
    assert pipeline_names(connection) == []


def test_model_with_more_dimensions_than_a_vector_can_have_is_refused(
    connection: Connection,
) -> None:
    with pytest.raises(UsageError, match="cannot create"):
        create_pipeline(connection, spec(), RECORDS, replace(FAKE_MODEL, dimensions=17_000))
    assert not exists(connection)


def test_of_two_that_create_at_once_one_is_told(connection: Connection, conninfo: str) -> None:
    start = threading.Barrier(2)

    def create(_: int) -> str:
        with connect(conninfo) as session:
            start.wait(10)
            try:
                create_pipeline(session, spec(), RECORDS, FAKE_MODEL)
            except UsageError as error:
                return str(error)
            return "created"

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(create, range(2)))
    assert first == "created"
    assert "another session just now" in second
    assert pipeline_names(connection) == ["reports"]
