"""`pgembed search` asks a server of this machine for the query's vector, and finds the same."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import connect
from pgqueue_embed.lifecycle.create import create
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.spec import USE_OPTIONS, PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.search_server import encoders
from pgqueue_embed.search_server.announce import announced
from pgqueue_embed.search_server.encoders import WarmEncoders
from pgqueue_embed.vector_search import query_vector, warm_query
from pgqueue_embed.web_server import Listening, Server
from tests.support.commands import pgembed
from tests.support.corpus import make_source
from tests.support.models import make_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.* does not know")

QUERY = "the pump stopped at night"
FILL = """
insert into public.reports_chunks (fulltext_id, chunk_id, chunk_index, text_chunk, start_char,
    end_char, tokens, embedding)
select id, id || '-0', 0, body, 0, 10, 2, array_fill(0.1::real, array[dimensions]) || 1::real
from public.reports cross join (select dimensions - 1 as dimensions from pgembed.pipelines) as made
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers of this test have their sockets: none yet, and at a path that is short."""
    with TemporaryDirectory() as made:
        path = Path(made) / "serve"
        monkeypatch.setattr(warm_query, "socket_folder", lambda: path)
        monkeypatch.setattr("pgqueue_embed.search_server.announce.socket_folder", lambda: path)
        yield path


@pytest.fixture(scope="module")
def world(shared_conninfo: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline of a real model, whose queries have a prompt and whose vectors are shortened."""
    model = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    spec = PipelineSpec(
        name="reports",
        source=Table(schema="public", name="reports"),
        target=Table(schema="public", name="reports_chunks"),
        text_fields=("body",),
        query_prompt="query: ",
        truncate_dim=16,
    )
    with connect(shared_conninfo) as connection:
        make_source(connection, ["The pump stopped at night.", "A valve was stuck."])
        create(connection, checked(spec), str(model))
        connection.execute(FILL)
    return shared_conninfo


@contextmanager
def running(conninfo: str) -> Iterator[None]:
    from pgqueue_embed.search_server.app import make_search_app

    with announced() as private:
        server = Server(
            lambda _url: make_search_app(conninfo, WarmEncoders()),
            Listening(port=0),
            private=private,
        )
        thread = Thread(target=server.run)
        thread.start()
        try:
            assert server.started.wait(30)
            yield
        finally:
            server.stop()
            thread.join(30)


def test_answer_is_that_of_a_search_without_a_server(
    world: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("search", "reports", QUERY, "--json", "--threshold=-1")
    alone = pgembed(world, *asked)
    with running(world):
        assert len(list(folder.iterdir())) == 1
        # By itself it can encode nothing any more.
        monkeypatch.setattr(query_vector, "QueryEncoder", None)
        warm = pgembed(world, *asked)
    assert list(folder.iterdir()) == []
    assert (warm.error, warm.exit_code, warm.stderr) == (None, 0, alone.stderr)
    found, expected = json.loads(warm.stdout), json.loads(alone.stdout)
    scores = [each.pop("score") for each in found], [each.pop("score") for each in expected]
    assert found == expected
    assert len(found) == 2
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_model_that_was_not_used_for_longest_is_forgotten_for_another(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "MOST_MODELS", 1)
    with connect(world) as connection:
        first = load_pipeline(connection, "reports")
    second = replace(first, spec=replace(first.spec, query_prompt="search: "))
    with closing(WarmEncoders()) as warm:
        for each in (first, second):
            warm.load(each)
        uses = [
            {name: getattr(each.spec, name) for name in USE_OPTIONS} for each in (first, second)
        ]
        found = [
            asyncio.run(warm.encode_if_loaded(first.model_fingerprint, use, None, QUERY))
            for use in uses
        ]
    assert found[0] is None
    assert found[1] is not None


def test_server_that_is_dead_strange_or_hangs_is_left_out(
    world: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(world) as connection:
        pipeline = load_pipeline(connection, "reports")

    def asks() -> object:
        return warm_query.ask_for_vector(pipeline, QUERY)

    assert asks() is None
    folder.mkdir(mode=0o700, parents=True)
    dead = folder / "1.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(dead))
    (folder / "2.sock").write_text("no socket")
    started = time.monotonic()
    assert asks() is None
    assert time.monotonic() - started < 0.1
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        monkeypatch.setattr(warm_query, "PATIENCE_SECONDS", 0.1)
        hanging.bind(str(folder / "3.sock"))
        hanging.listen()
        assert asks() is None
        (folder / "3.sock").unlink()
    for answer in (b"", b"garbage", b"HTTP/1.1 200 OK\r\n\r\n{}", b"HTTP/1.1 404 no\r\n\r\n{}"):
        with answering(folder / "4.sock", answer):
            assert asks() is None
    with running(world):
        assert not dead.exists()
        assert asks() is not None
        folder.chmod(0o755)
        assert asks() is None
        folder.chmod(0o700)
        other = replace(pipeline, model_fingerprint="another")
        assert warm_query.ask_for_vector(other, QUERY) is None
        prompted = replace(pipeline, spec=replace(pipeline.spec, query_prompt="other: "))
        assert warm_query.ask_for_vector(prompted, QUERY) is None


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Let whatever stands at `path` answer one request with some bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def once() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = Thread(target=once)
        thread.start()
        yield
        thread.join(10)
    path.unlink()
