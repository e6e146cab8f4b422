"""The database that is meant, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqueue_embed import local_server
from pgqueue_embed.configuration import ConfigurationError
from pgqueue_embed.configuration.conninfo import DatabaseOptions, resolve_conninfo
from pgqueue_embed.db.dsn import PRIVATE, describe_dsn, normalise
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import connect
from pgqueue_embed.errors import DatabaseUnavailable, UsageError

SECRET = "s3cr3t"
ENVIRONMENT = {
    "PGEMBED_DSN": "postgresql://a@pgembed-dsn/db",
    "DATABASE_URL": "postgresql://a@database-url/db",
    "PGHOST": "pg-host",
}


@pytest.fixture(autouse=True)
def _no_database_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _embedded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "ensure_running", lambda **_: "host=embedded")


def host(conninfo: str) -> object:
    return conninfo_to_dict(conninfo)["host"]


def test_dsn_option_comes_first() -> None:
    options = DatabaseOptions(dsn="postgresql://a@option/db")
    assert host(resolve_conninfo(options, ENVIRONMENT)) == "option"


def test_separate_options_come_before_the_environment() -> None:
    options = DatabaseOptions(host="separate", port=6432, name="db", user="me", password=SECRET)
    parts = conninfo_to_dict(resolve_conninfo(options, ENVIRONMENT))
    assert parts == {
        "host": "separate",
        "port": "6432",
        "dbname": "db",
        "user": "me",
        "password": SECRET,
    }


def test_file_comes_after_options_and_environment_and_before_the_embedded_server(
    tmp_path: Path,
) -> None:
    declared = {"host": "file", "dbname": "reports", "user": "app"}
    file = tmp_path / "pgembed.toml"
    file.write_text("[database]\nhost = 'file'\nname = 'reports'\nuser = 'app'\n", "utf-8")

    def resolved(environment: dict[str, str], **options: Any) -> dict[str, Any]:
        how = DatabaseOptions(**options)
        return conninfo_to_dict(resolve_conninfo(how, environment, file=file))

    assert resolved({}) == declared
    assert resolved({}, dsn="postgresql://a@option/db")["host"] == "option"
    assert resolved({}, name="other") == {"dbname": "other"}
    for variable in ("PGHOST", "PGPORT", "PGDATABASE", "PGSERVICE"):
        assert resolved({variable: "x"}) == {}
    for variable in ("PGEMBED_DSN", "DATABASE_URL"):
        assert resolved(ENVIRONMENT | {variable: "host=variable"})["host"] != "file"
    # Who one is says nothing of where.
    assert resolved({}, user="me", password=SECRET) == {
        **declared,
        "user": "me",
        "password": SECRET,
    }
    assert resolved({"PGUSER": "me"}) == {"host": "file", "dbname": "reports"}


def test_file_is_not_read_when_it_is_not_needed(tmp_path: Path) -> None:
    absent = tmp_path / "pgembed.toml"
    resolve_conninfo(DatabaseOptions(dsn="host=option"), {}, file=absent)
    resolve_conninfo(DatabaseOptions(), ENVIRONMENT, file=absent)
    with pytest.raises(ConfigurationError):
        resolve_conninfo(DatabaseOptions(), {}, file=absent)


def test_variables_come_in_the_documented_order() -> None:
    environment = dict(ENVIRONMENT)
    assert host(resolve_conninfo(DatabaseOptions(), environment)) == "pgembed-dsn"
    del environment["PGEMBED_DSN"]
    assert host(resolve_conninfo(DatabaseOptions(), environment)) == "database-url"
    environment["DATABASE_URL"] = ""
    assert resolve_conninfo(DatabaseOptions(), environment) == ""


@pytest.mark.usefixtures("_embedded_server")
def test_embedded_server_is_the_last_resort() -> None:
    assert resolve_conninfo(DatabaseOptions(), {"PGHOST": ""}) == "host=embedded"
    assert resolve_conninfo(DatabaseOptions(), {"PGPASSWORD": SECRET}) == "host=embedded"


def test_private_server_is_made_for_those_alone_that_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGEMBED_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match=r"no database was named .* there is no private one"):
        resolve_conninfo(DatabaseOptions(), {}, may_make=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_string_names_no_database(empty: str) -> None:
    with pytest.raises(UsageError, match="--dsn is empty"):
        resolve_conninfo(DatabaseOptions(dsn=empty), ENVIRONMENT)
    with pytest.raises(UsageError, match="PGEMBED_DSN is empty"):
        resolve_conninfo(DatabaseOptions(), {"PGEMBED_DSN": empty})


@pytest.mark.parametrize("variable", ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGUSER", "PGSERVICE"])
def test_any_libpq_variable_means_libpq(variable: str) -> None:
    assert resolve_conninfo(DatabaseOptions(), {variable: "x"}) == ""


def test_two_databases_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="--dsn and --db-"):
        resolve_conninfo(DatabaseOptions(dsn="host=a", host="b"), {})


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+asyncpg"]
)
def test_urls_of_other_programs_are_understood(scheme: str) -> None:
    url = f"{scheme}://me:{SECRET}@db.lan:6432/reports"
    parts = conninfo_to_dict(normalise(url, "--dsn"))
    assert parts["host"] == "db.lan"
    assert parts["password"] == SECRET


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:{SECRET}@db:notaport/x?=",
        f"host=db password={SECRET} nonsense",
        f"host=db password='{SECRET}",
        f"mysql://me:{SECRET}@db/x",
        f"postgresql://me:{SECRET}%zz@db/x",
    ],
)
def test_unreadable_connection_string_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(UsageError, match="of DATABASE_URL") as refusal:
        normalise(dsn, "DATABASE_URL")
    assert SECRET not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:p@{SECRET}@db/reports",
        f"postgresql://me:{SECRET}/part@db/reports",
        f"postgresql://me:p/{SECRET}@db/reports",
        f"postgresql+psycopg://me:p@{SECRET}/x@db/reports",
    ],
)
def test_url_with_an_unescaped_password_is_refused_with_the_way_out(url: str) -> None:
    """libpq would take a part of the password for a host or a database, and show it."""
    with pytest.raises(UsageError, match="%40") as refusal:
        normalise(url, "--dsn")
    assert SECRET not in str(refusal.value)


def test_escaped_password_is_understood() -> None:
    parts = conninfo_to_dict(normalise("postgresql://me:p%40ss%2Fword@db/reports", "--dsn"))
    assert (parts["password"], parts["host"]) == ("p@ss/word", "db")


@pytest.mark.parametrize(
    ("conninfo", "shown"),
    [
        (f"host=db.lan port=6432 user=app password={SECRET} dbname=x", "app@db.lan:6432/x"),
        (f"postgresql://app:{SECRET}@db.lan/reports", "app@db.lan:5432/reports"),
        (f"service=prod password={SECRET}", "service prod"),
        ("dbname=x", "the local socket:5432/x"),
    ],
)
def test_description_shows_where_and_no_password(conninfo: str, shown: str) -> None:
    assert describe_dsn(conninfo) == shown


def test_description_knows_libpq_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "env-host")
    monkeypatch.setenv("PGDATABASE", "env-db")
    assert describe_dsn("user=me") == "me@env-host:5432/env-db"


@pytest.mark.parametrize(
    "conninfo",
    [
        f"host=127.0.0.1 port=1 user=app password={SECRET} dbname=reports",
        f"postgresql://app:{SECRET}@127.0.0.1:1/reports",
        f"host=127.0.0.1 port=1 user=app password={SECRET} sslmode=nonsense",
        f"host=127.0.0.1 port=99999999 password={SECRET}",
    ],
)
def test_refused_connection_is_one_line_without_a_password(conninfo: str) -> None:
    with pytest.raises(DatabaseUnavailable) as failure:
        connect(conninfo)
    text = str(failure.value)
    assert text.startswith("cannot connect to ")
    assert "127.0.0.1" in text
    assert "\n" not in text
    assert SECRET not in text
    assert failure.value.__suppress_context__


def test_server_that_is_not_there_is_told_of_with_what_to_check(tmp_path: Path) -> None:
    for nowhere in ("host=127.0.0.1 port=1", f"host={tmp_path}"):
        with pytest.raises(DatabaseUnavailable, match=r"check that PostgreSQL runs there.*--dsn"):
            connect(nowhere)
    with pytest.raises(DatabaseUnavailable, match="start it: pgembed db start"):
        connect(f"host=127.0.0.1 port=1 fallback_application_name={PRIVATE}")
    with pytest.raises(DatabaseUnavailable) as answered:
        connect("host=127.0.0.1 port=1 sslmode=nonsense")
    assert "check" not in str(answered.value)


def test_error_is_cut_down_to_what_a_person_needs() -> None:
    error = psycopg.OperationalError(
        'connection failed: connection to server at "::1", port 1 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?\n"
    )
    shown = 'connection to server at "::1", port 1 failed: Connection refused'
    assert first_line(error) == shown
    assert first_line(psycopg.OperationalError("ERROR:  no\nDETAIL: more")) == "no"
    assert first_line(ValueError()) == "ValueError"


def test_file_of_a_connection_string_comes_behind_the_string_itself(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text(f"postgresql://a:{SECRET}@of-file/db\n")
    environment = {**ENVIRONMENT, "PGEMBED_DSN_FILE": str(file)}

    assert host(resolve_conninfo(DatabaseOptions(), environment)) == "pgembed-dsn"
    assert host(resolve_conninfo(DatabaseOptions(host="option"), environment)) == "option"
    del environment["PGEMBED_DSN"]
    found = conninfo_to_dict(resolve_conninfo(DatabaseOptions(), environment))
    assert (found["host"], found["password"]) == ("of-file", SECRET)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b" \n", "is empty; write the connection string in it"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * 100_000, "has more than 65,536 bytes"),
        (f"postgresql://a:{SECRET}@[host/db".encode(), "cannot be read"),
    ],
)
def test_file_without_a_connection_string_is_refused(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "dsn"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(UsageError) as caught:
        resolve_conninfo(DatabaseOptions(), {"PGEMBED_DSN_FILE": str(file)})

    assert said in str(caught.value)
    assert "PGEMBED_DSN_FILE" in str(caught.value)
    assert str(caught.value).count(str(file)) <= 1
    assert SECRET not in str(caught.value)
