"""pgembed.toml: what is read from it, what is written to it, and how it complains."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pgqueue_embed.cli.declared_pipelines import read_pipelines
from pgqueue_embed.cli.pipeline_options import WantedPipeline
from pgqueue_embed.cli.show import in_toml
from pgqueue_embed.configuration import ConfigurationError, declared_database
from pgqueue_embed.configuration.declared import Declared, written
from pgqueue_embed.db.names import Table
from pgqueue_embed.embedding import full_name
from pgqueue_embed.errors import PgembedError, UsageError
from pgqueue_embed.pipeline.option import options_of
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.pipeline.target_columns import TargetColumns

SECRET = "hunter2"

REPORTS = """
[pipelines.reports]
source_table = "fda_data.event_mdr_text"
"""


def read(folder: Path, text: str) -> list[Declared]:
    path = folder / "pgembed.toml"
    path.write_text(text, encoding="utf-8")
    return read_pipelines(path)


# What is read


def test_file_without_options_declares_what_create_makes_without_them(tmp_path: Path) -> None:
    (declared,) = read(tmp_path, REPORTS)
    assert declared.spec == WantedPipeline(source_table="fda_data.event_mdr_text").spec("reports")
    assert declared.model == DEFAULT_MODEL


def test_keys_mean_what_the_options_mean(tmp_path: Path) -> None:
    (declared,) = read(
        tmp_path,
        REPORTS
        + """
        target_table = "vectors.events"
        db_schema = "elsewhere"
        id_field = ["tenant", "mdr_text_key"]
        text_field = 'title,"a,b"'
        where = "text_type_code = 'D'"
        chunk_size = 64
        overlap_tokens = 8
        vector_type = "halfvec"
        priority = 20
        model = "BAAI/bge-m3"
        target_column = { embedding = "vector", fulltext_id = ["of_tenant", "report"] }
        """,
    )
    spec = declared.spec
    assert spec.target == Table(schema="vectors", name="events")
    assert spec.id_fields == ("tenant", "mdr_text_key")
    assert spec.text_fields == ("title", "a,b")
    assert spec.where == "text_type_code = 'D'"
    assert (spec.chunk_tokens, spec.overlap_tokens, spec.vector_type) == (64, 8, "halfvec")
    assert spec.columns == TargetColumns(embedding="vector", fulltext_id=("of_tenant", "report"))
    assert (spec.priority, declared.model) == (20, "BAAI/bge-m3")


def test_file_of_an_editor_on_windows_is_read(tmp_path: Path) -> None:
    text = REPORTS.replace("\n", "\r\n")
    (tmp_path / "pgembed.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_pipelines(tmp_path / "pgembed.toml")) == 1


def test_every_setting_of_a_pipeline_has_a_key() -> None:
    held = {option.field for option in options_of(PipelineSpec)}
    assert held == {each.name for each in fields(PipelineSpec)} - {"name"}


# What is written is read again


names = st.text(
    st.characters(exclude_characters="\x00%", exclude_categories=["Cs"]), min_size=1, max_size=12
)
columns = st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
tables = st.builds(Table, schema=names, name=names)
texts = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=40
)

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20),
    "source": tables,
    "target": tables,
    "id_fields": columns,
    "text_fields": columns,
    "template": st.none() | texts.map(lambda text: text.replace("$", "$$") + "$title"),
    "chunk_template": st.none() | texts.map(lambda text: text.replace("$", "$$") + "$title$chunk"),
    "where": st.none() | texts.map(lambda text: f"true{text}"),
    "chunking": st.sampled_from(["tokens", "none"]),
    "chunk_tokens": st.integers(41, 5000),
    "overlap_tokens": st.integers(0, 20),
    "columns": st.builds(
        lambda names: TargetColumns(embedding=names[0], id=names[1]),
        st.lists(names.map(lambda name: f"_{name}"), min_size=2, max_size=2, unique=True),
    ),
    "into_column": st.none() | names.map(lambda name: f"_{name}"),
    "vector_type": st.sampled_from(["vector", "halfvec"]),
    "index_method": st.none() | st.sampled_from(["hnsw", "ivfflat"]),
    "quantize": st.sampled_from(["none", "halfvec", "binary"]),
    "partition_by": st.sampled_from([None, "hash:16"]),
}

# What any other setting can be.
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(1, 100),
    int | None: st.none() | st.integers(1, 100),
    str | None: st.none() | names,
    tuple[str, ...]: st.just(()) | columns,
}


@st.composite
def specs(draw: st.DrawFn) -> PipelineSpec:
    values = {
        each: draw(SETTINGS[each] if each in SETTINGS else BY_TYPE[hint])
        for each, hint in get_type_hints(PipelineSpec).items()
    }
    if values["template"] is not None:
        values["text_fields"] = ()
    if values["into_column"] is not None:
        values["chunking"] = "none"
        for of_a_table in (
            "columns",
            "text",
            "ids",
            "copy_columns",
            "foreign_key",
            "view",
            "partition_by",
        ):
            del values[of_a_table]
    if values.get("foreign_key"):
        del values["ids"]
    if values["lexical"]:
        values.pop("text", None)
    if values["chunking"] == "none":
        del values["chunk_tokens"], values["overlap_tokens"]
    if values["index_method"] is None:
        del values["quantize"]
    try:
        return checked(PipelineSpec(**values))
    except UsageError:  # such as one table twice: rare, and of no interest
        reject()


@settings(max_examples=60, deadline=None)
@given(spec=specs(), model=texts, sync=st.booleans())
def test_any_pipeline_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, spec: PipelineSpec, model: str, sync: bool
) -> None:
    text = in_toml({spec.name: written(spec, model, sync=sync)})
    (declared,) = read(tmp_path_factory.getbasetemp(), text)
    assert declared.spec == spec
    assert full_name(declared.model) == full_name(model)
    assert declared.values == written(spec, model, sync=sync)


def test_home_of_nobody_is_a_folder_like_any_other() -> None:
    assert full_name("~no-such-user/model").endswith("/~no-such-user/model")


# What is refused


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no pipeline in it; write a table [pipelines.NAME]"),
        ("[pipelines]", "no pipeline in it; write a table [pipelines.NAME]"),
        ("[pipeline.reports]", "unknown key 'pipeline'; did you mean pipelines?"),
        ("[[pipelines]]", "pipelines is a list; give a table"),
        ("[pipelines]\nsource_table = 'a'", "unknown key 'source_table'; write a table for each"),
        ("[pipelines.a.b]\nsource_table = 'a'", 'is written [pipelines."a.b"]'),
        ("[pipelines.a]\nsource_table = 1", "'a': source_table is a whole number; give text"),
        ("[pipelines.a]", "pipeline 'a': name the table with the text: source_table schema.table"),
        (REPORTS + "chunk_sise = 1", "pipeline 'reports': unknown key 'chunk_sise'; did you mean"),
        (REPORTS + "colour = 1", "unknown key 'colour'; there are source_table, target_table"),
        (REPORTS + "chunk_size = '1'", "chunk_size is text; give a whole number"),
        (REPORTS + "chunk_size = true", "chunk_size is true or false; give a whole number"),
        (REPORTS + "chunk_size = 1.5", "chunk_size is a number; give a whole number"),
        (REPORTS + "where = 2026-01-01", "where is a date or time; give text"),
        (REPORTS + "chunk_size = 0", "pipeline 'reports': chunk_size 0: give at least 1 token"),
        (REPORTS + "max_attempts = 99999999999", "give a number from 1 to 1,000,000"),
        (REPORTS + "overlap_tokens = 64", "overlap_tokens 64: give 0 to 63, less than half of ch"),
        (REPORTS + "id_field = []", "id_field is an empty list; leave it out, or give a name"),
        (REPORTS + "id_field = ['a', 1]", "a name in id_field is a whole number; give text"),
        (REPORTS + "target_column = 'a=b'", "target_column is text; give a table"),
        (REPORTS + "target_column.id = ['a', 'b']", "target_column.id is a list; give text"),
        (REPORTS + "target_column.ids = 'a'", "unknown target column 'ids'; there are id,"),
        (REPORTS + "index = 'btree'", "index btree: give hnsw or ivfflat"),
        (REPORTS + "index = { quantize = 'halfvec' }", "index has no method; write index = {"),
        (REPORTS + "index = { metod = 'hnsw' }", "unknown key 'metod'; did you mean method?"),
        (REPORTS + "index = { method = 'hnsw', quantize = 1 }", "quantize is a whole number; give"),
        (REPORTS + "index = { method = 'hnsw', quantize = 'int8' }", "quantize int8: give none or"),
        (REPORTS + "quantize = 'halfvec'", "quantize halfvec is of an index; add index hnsw"),
        (REPORTS + "text_field = 'a'\ntemplate = '$a'", "text_field and template both make the"),
        (REPORTS + "template = '$'", "template: the $ at character 1 names no column"),
        (
            REPORTS + REPORTS.replace("reports", "events"),
            "pipeline 'events': its target, fda_data.event_mdr_text_vectors, is that of"
            " pipeline 'reports' too; name another: target_table = …",
        ),
        (REPORTS + REPORTS, "pgembed.toml is not TOML: "),
        (REPORTS + "where = 'a", "pgembed.toml is not TOML: "),
        ("[pipelines.'']\nsource_table = 'a'", "a pipeline's name has 1 to 100 printable char"),
        (REPORTS + 'where = "a\\u0000"', "where holds a NUL character"),
        ("[database]\nhots = 'a'", "pgembed.toml, [database]: unknown key 'hots'; did you mean h"),
        ("[database]\nport = '1'", "pgembed.toml, [database]: port is text; give a whole number"),
        ("[database]\ndsn = 'host=a'\nport = 1", "dsn says all of it; leave the other keys out"),
        ("[database]\nhost = 'postgresql://a/b'", "host holds a URL; write dsn = …"),
    ],
)
def test_mistakes_are_one_line_with_the_place_and_the_way_out(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    line = str(caught.value)
    assert complaint in line
    assert line.startswith(str(tmp_path / "pgembed.toml"))
    assert "\n" not in line
    assert "--" not in line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "there is no file"), (b"\xff\xfe", "is not UTF-8"), ("folder", "cannot read")],
)
def test_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | str | None, complaint: str
) -> None:
    path = tmp_path / "pgembed.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        read_pipelines(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"[database]\n{key} = '{SECRET}'"
            for key in ("password", "pasword", "passwrod", "passwd", "pwd", "pw", "PGPASSWORD")
        ),
        f"[database]\ndsn = 'postgresql://app:{SECRET}@db.lan/reports'",
        f"[database]\ndsn = 'postgresql+psycopg://app:{SECRET}@db.lan/reports'",
        f"[database]\ndsn = 'postgresql://app:a@b/{SECRET}@db.lan/reports'",
        f"[database]\ndsn = 'postgresql://app@db.lan/reports?password={SECRET}'",
        f"[database]\ndsn = 'host=db.lan password={SECRET}'",
        f"[database]\ndsn = 'host=db.lan sslpassword={SECRET}'",
        f"[database]\nhost = 'postgresql://app:{SECRET}@db.lan/reports'",
        REPORTS + f"db_password = '{SECRET}'",
        REPORTS + f"pasword = '{SECRET}'",
        f"password = '{SECRET}'",
        f"[pipelines]\npassword = '{SECRET}'",
    ],
)
def test_passwords_are_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert "no password belongs into this file; put it into PGPASSWORD" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        f"[database]\ndsn = '{SECRET}'",
        f"[database]\ndsn = 'host=db.lan pasword={SECRET}'",
        f"[database]\npassword = {SECRET}",
        f"[database]\nport = '{SECRET}'",
        f"[database]\nuser = ['{SECRET}']",
        f"[pipelines]\nreports = '{SECRET}'",
        REPORTS + f"colour = '{SECRET}'",
    ],
)
def test_no_value_in_a_wrong_place_is_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(PgembedError) as caught:
        read(tmp_path, text)
    assert SECRET not in str(caught.value)


# The database


def test_database_of_the_file_is_given_by_parts_or_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "pgembed.toml"
    wanted = {"host": "db.lan", "port": 5433, "dbname": "reports", "user": "app"}
    path.write_text("[database]\nhost = 'db.lan'\nport = 5433\nname = 'reports'\nuser = 'app'\n")
    assert declared_database(path) == wanted
    path.write_text("[database]\ndsn = 'postgresql://app@db.lan:5433/reports'\n")
    assert declared_database(path) == {**wanted, "port": "5433"}
    path.write_text("[database]\nservice = 'reports'\n")
    assert declared_database(path) == {"service": "reports"}
    path.write_text(REPORTS)
    assert declared_database(path) == {}
