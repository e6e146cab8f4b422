"""docs/python.md: its example and its recipes, executed as they stand."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.pipeline import model
from tests.acceptance.test_quickstart import load_reports
from tests.support.documents import marked_block
from tests.support.models import make_tiny_model
from tests.support.oracle import assert_converged
from tests.support.rows import one_row, one_value

if TYPE_CHECKING:
    from alembic.config import Config

DOCUMENT = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def reports(empty_conninfo: str) -> Iterator[Connection]:
    """A database with the documents' source table in it, and nothing else."""
    with connect(empty_conninfo) as connection:
        load_reports(connection, 12)
        yield connection


@pytest.fixture(autouse=True, scope="module")
def _small_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real model as wide as the default one, and loaded and run in no time."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", dimensions=384)
    small = resolve_model(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "resolve_model", lambda *_, **__: small)
        yield


def url_of(conninfo: str, driver: str = "") -> str:
    """Return a URL as SQLAlchemy writes it."""
    import sqlalchemy

    values = conninfo_to_dict(conninfo)
    url = sqlalchemy.URL.create(
        f"postgresql{driver}",
        str(values["user"]),
        str(values["password"]),
        str(values["host"]),
        int(str(values["port"])),
        str(values["dbname"]),
    )
    return url.render_as_string(hide_password=False)


def execute(
    name: str, conninfo: str, names: dict[str, Any] | None = None, document: Path = DOCUMENT
) -> dict[str, Any]:
    """Execute a document's example `name` on another database than it says, behind `names`."""
    code = marked_block(document, f"{name}: executed by the tests", "python")
    code, changed = re.subn(
        r"postgresql(\+psycopg)?://app@db\.lan/reports",
        lambda found: url_of(conninfo, found[1] or ""),
        code,
    )
    assert changed == 1
    namespace: dict[str, Any] = {"__name__": "example", **(names or {})}
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    running = eval(compile(code, str(DOCUMENT), "exec", flags, dont_inherit=True), namespace)
    if inspect.iscoroutine(running):
        asyncio.run(running)
    return namespace


def test_examples_run_as_they_stand(
    reports: Connection, empty_conninfo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    execute("example", empty_conninfo)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "12 of 12 records, 0 failed"
    assert len(printed) == 6
    assert all(re.match(r"0\.\d\d  \d+  '", line) for line in printed[1:])
    assert_converged(reports, "reports")

    application = execute("application", empty_conninfo)
    assert application["similar"]
    application = execute("awaited", empty_conninfo, application)
    assert application["awaited"] == application["hits"]

    reports.execute("alter table public.event_text add event_type text default 'D', add brand text")
    execute("from Python", empty_conninfo, document=DOCUMENT.with_name("search.md"))
    assert len(capsys.readouterr().out.splitlines()) == 5

    recipe = execute("SQLAlchemy", empty_conninfo)
    recipe["engine"].dispose()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert all(re.match(r"0\.\d\d  \d+  '", line) for line in printed)
    assert reports.execute("select pending from pgembed.progress").fetchone() == (1,)


ENVIRONMENT = """
from alembic import context
from sqlalchemy import Column, MetaData, BigInteger, Table, Text, create_engine

target_metadata = MetaData()
Table(
    "event_text", target_metadata,
    Column("mdr_text_key", BigInteger, primary_key=True), Column("foi_text", Text, nullable=False)
)
engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
{configure}
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""

FIRST_REVISION = """
from alembic import op
import sqlalchemy as sa

revision = "0001"
down_revision = None


def upgrade():
    op.create_table(
        "event_text",
        sa.Column("mdr_text_key", sa.BigInteger, primary_key=True),
        sa.Column("foi_text", sa.Text, nullable=False),
    )


def downgrade():
    op.drop_table("event_text")
"""


def alembic_config(folder: Path, conninfo: str) -> Config:
    """Make a project of Alembic with the document's revision and environment in it."""
    from alembic.config import Config

    (folder / "versions").mkdir()
    block = marked_block(DOCUMENT, "Alembic environment: executed by the tests", "python")
    indented = "".join(f"    {line}" for line in block.splitlines(keepends=True))
    (folder / "env.py").write_text(ENVIRONMENT.format(configure=indented), encoding="utf-8")
    revision = marked_block(DOCUMENT, "Alembic revision: executed by the tests", "python")
    (folder / "versions" / "first.py").write_text(FIRST_REVISION, encoding="utf-8")
    (folder / "versions" / "second.py").write_text(revision, encoding="utf-8")
    config = Config()
    config.set_main_option("script_location", str(folder))
    url = url_of(conninfo, "+psycopg")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def test_alembic_makes_all_and_proposes_to_drop_nothing(
    empty_conninfo: str, tmp_path: Path
) -> None:
    from alembic import command

    config = alembic_config(tmp_path, empty_conninfo)
    command.upgrade(config, "head")
    with connect(empty_conninfo) as connection:
        made = one_value(
            connection, "select target_table from pgembed.pipelines where name = 'reports'"
        )
        assert made == "event_text_vectors"
        command.check(config)
        command.upgrade(config, "head")
        command.downgrade(config, "0001")
        (kept, dropped) = one_row(
            connection,
            "select to_regclass('public.event_text'), to_regclass('public.event_text_vectors')",
        )
        assert (kept, dropped) == ("public.event_text", None)
        command.downgrade(config, "base")
