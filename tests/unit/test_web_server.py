"""Every HTTP server of pgembed: what it lets in, how it ends; a real one, asked as a stranger."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from pgqueue_embed.errors import UsageError
from pgqueue_embed.web_server import Listening, Server
from pgqueue_embed.web_server.answers import Receive, Scope, Send
from pgqueue_embed.web_server.api_key import ApiKey, find_api_key
from pgqueue_embed.web_server.guard import Guard
from pgqueue_embed.web_server.listening import host_name, open_private_socket

KEY = "0123456789abcdef0123"
MOST_BYTES = 1000


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body, or break where the path says so."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/broken":
        raise RuntimeError("secret")
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def running(listening: Listening, **options: object) -> Iterator[Server]:
    server = Server(lambda _url: echo, listening, **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.started.wait(20)
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with a key, and the Unix socket that needs none."""
    path = tmp_path_factory.mktemp("run") / "private" / "s"
    listening = Listening(port=0, key=ApiKey(KEY, "test"), names=("Db.lan",))
    with running(
        listening,
        private=[open_private_socket(path)],
        open_paths=["/health"],
        most_body_bytes=MOST_BYTES,
    ) as server:
        yield server, path


def ask(server: Server, path: str = "/", content: bytes = b"", **headers: str) -> httpx.Response:
    bearer = {"authorization": f"Bearer {KEY}"}
    encoded = {name.encode(): value.encode("latin-1") for name, value in (bearer | headers).items()}
    return httpx.post(server.url + path, content=content, headers=encoded, verify=False)


def test_strangers_are_told_why_and_the_application_never_sees_them(
    guarded: tuple[Server, Path],
) -> None:
    server, _ = guarded
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    host = server.url.removeprefix("http://")
    port = host.rpartition(":")[2]
    cases = [
        (ask(server), 200),
        (ask(server, authorization=f"Basic {basic}"), 200),
        (ask(server, authorization="Bearer wrong"), 401),
        (ask(server, authorization=f"Bearer {KEY[:-1]}é"), 401),
        (ask(server, authorization="Basic ***"), 401),
        (ask(server, authorization=KEY), 401),
        (ask(server, authorization=""), 401),
        (ask(server, "/health", authorization=""), 200),
        (ask(server, host="evil.example"), 421),
        (ask(server, host=f"evil.example:{port}"), 421),
        (ask(server, "/health", host="evil.example", authorization=""), 421),
        (ask(server, host=""), 400),
        (ask(server, host="db.lan:x"), 400),
        (ask(server, host="DB.lan:443"), 200),
        (ask(server, host="localhost"), 200),
        (ask(server, host="[::1]:80"), 200),
        (ask(server, origin="https://evil.example"), 403),
        (ask(server, origin="null"), 403),
        (ask(server, origin=f"http://{host}"), 200),
        (ask(server, content=b"x" * MOST_BYTES), 200),
        (ask(server, content=b"x" * (MOST_BYTES + 1)), 413),
        (httpx.post(server.url, content=iter([b"x" * 600] * 2), auth=("", KEY)), 413),
        (ask(server, "/broken"), 500),
    ]
    for number, (response, status) in enumerate(cases):
        assert response.status_code == status, (number, response.text)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert "server" not in response.headers
        assert ("x-own" in response.headers) == (status == 200)
        assert "secret" not in response.text
        if status != 200:
            assert response.json()["error"]["message"]


def test_unix_socket_needs_no_key_and_is_for_its_owner_alone(guarded: tuple[Server, Path]) -> None:
    _, path = guarded
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport) as client:
        assert client.post("http://any/", content=b"hello").content == b"hello"


def test_slow_client_is_let_go_and_one_that_leaves_is_no_fault(
    guarded: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = guarded
    monkeypatch.setattr("pgqueue_embed.web_server.guard.BODY_SECONDS", 0.2)
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        assert b" 408 " in slow.recv(1000).partition(b"\r\n")[0]
    with socket.create_connection((host, int(port)), timeout=10) as leaving:
        leaving.sendall(f"{head}Content-Length: 100\r\n\r\nabc".encode())
    with socket.create_connection((host, int(port)), timeout=10) as twice:
        twice.sendall(f"{head}Host: evil.example\r\n\r\n".encode())
        assert b" 400 " in twice.recv(1000).partition(b"\r\n")[0]
    assert ask(server, content=b"still there").content == b"still there"


def test_listens_for_others_with_a_key_alone() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UsageError, match="--api-key-file"):
            Listening(port=0, host=host).open_socket()
    Listening(port=0, host="0.0.0.0", key=ApiKey(KEY, "test")).open_socket().close()
    with Listening(port=0).open_socket() as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use"):
            Listening(port=port).open_socket()
    for host, said in (("no.such.invalid", "no address"), ("192.0.2.1", "no address of this")):
        with pytest.raises(UsageError, match=said):
            Listening(port=0, host=host, key=ApiKey(KEY, "test")).open_socket()
    with pytest.raises(UsageError, match="0 to 65535"):
        Listening(port=70_000).open_socket()


def test_key_comes_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match=r"others may read.*chmod 600"):
        find_api_key(file, {})
    file.chmod(0o600)
    found = find_api_key(file, {})
    assert found is not None
    assert found.is_in(f"bearer {KEY}")
    assert KEY not in repr(found) + repr(Guard(app=echo, key=found))
    assert find_api_key(None, {}) is None
    assert find_api_key(None, {"PGEMBED_API_KEY": KEY}) is not None
    for bad in ("", "short", "has a space in it, long", "\x00" * 20):
        with pytest.raises(UsageError, match="at least 16") as fault:
            find_api_key(None, {"PGEMBED_API_KEY": bad})
        assert not bad or bad not in str(fault.value)
    with pytest.raises(UsageError, match="cannot read"):
        find_api_key(tmp_path / "none", {})


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_head_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch, parser: str) -> None:
    if parser == "h11":
        monkeypatch.setattr("pgqueue_embed.web_server.server.find_spec", lambda _name: None)
    with running(Listening(port=0)) as server:
        assert (server._server.config.http == "h11") == (parser == "h11")
        assert answer_to_long_head(server)[:12] in (b"", b"HTTP/1.1 400")
        many = {f"x-{number}": "x" * 100 for number in range(100)}
        assert ask(server, content=b"still there", **many).content == b"still there"


def answer_to_long_head(server: Server) -> bytes:
    """Return what comes back of a head of a megabyte, nothing if it is cut off in its midst."""
    place = urlsplit(server.url)
    with socket.create_connection((str(place.hostname), place.port or 0), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with suppress(ConnectionError):
            for _ in range(64):
                client.sendall(b"x" * 16_384)
        with suppress(ConnectionError):
            return client.recv(1024)
    return b""


def test_name_in_a_host_header() -> None:
    names = {
        "db.lan": "db.lan",
        "DB.lan.:80": "db.lan",
        "127.0.0.1:1": "127.0.0.1",
        "[::1]": "::1",
        "[::1]:8": "::1",
        "": None,
        ":80": None,
        "a:b": None,
        "a:1:2": "a:1",
        "a@b": "a@b",
    }
    assert {header: host_name(header) for header in names} == names
