"""pgembed show: the settings of pipelines, as a table, and as the file that declares them."""

from __future__ import annotations

from pathlib import Path

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.applying import DECLARED, REPORTS, apply, declare
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts

PREPARED = DECLARED


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
