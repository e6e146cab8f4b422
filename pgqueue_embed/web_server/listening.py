"""The addresses that a server listens on: this machine's alone, unless clients bring a key."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.web_server.api_key import KEY_VARIABLE, ApiKey

LOOPBACK = "127.0.0.1"
BACKLOG = 512


@dataclass(frozen=True, kw_only=True)
class Listening:
    """A host (name or address of this machine), its port (0 for any free one), and who may ask.

    With a `key`, each request has to bring it. `names` are host names that requests may be for,
    besides ``localhost``, `host` and addresses: those that a reverse proxy passes on, say.
    """

    port: int
    host: str = LOOPBACK
    key: ApiKey | None = None
    names: tuple[str, ...] = ()

    def open_socket(self) -> socket.socket:
        """Return a socket that is bound, and listens only once it is served.

        Raises UsageError for a host or port that cannot be listened at, and for a host that others
        reach without a `key`.
        """
        family, address = self._address()
        if self.key is None and not ipaddress.ip_address(address[0]).is_loopback:
            raise UsageError(
                f"--host {self.host}: other machines would reach it, so that clients have to bring"
                f" a key; give one by --api-key-file or {KEY_VARIABLE}"
            )
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except OSError as error:
            opened.close()
            raise self._refused(error) from None
        return opened

    def _address(self) -> tuple[socket.AddressFamily, tuple[str, int]]:
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"--port {self.port}: give a number from 0 to 65535")
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UsageError(
                f"--host {self.host}: no address has that name; 127.0.0.1 is for this machine alone"
            ) from None
        # IPv4 first: it is what `localhost` means to most clients.
        family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        return family, (str(address[0]), self.port)

    def _refused(self, error: OSError) -> UsageError:
        way_out = {
            errno.EADDRINUSE: f"port {self.port} of {self.host} is in use; give another: --port",
            errno.EACCES: f"port {self.port} is for root alone; give one from 1024 on: --port",
            errno.EADDRNOTAVAIL: f"--host {self.host} is no address of this machine",
        }
        usual = f"cannot listen at {self.host} port {self.port}: {error.strerror}"
        return UsageError(way_out.get(error.errno or 0, usual))


def open_private_socket(path: Path) -> socket.socket:
    """Return a Unix socket at `path`, which its owner alone can reach; an old one is replaced.

    Its folder is made for this user alone. Raises SetupError where that cannot be.
    """
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_folder_of_others(path.parent)
        path.unlink(missing_ok=True)
        opened.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        opened.close()
        raise SetupError(f"cannot make the socket {path}: {error.strerror or error}") from None
    return opened


def _refuse_folder_of_others(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "its folder is not for this user alone")


def url_of(opened: socket.socket) -> str:
    """Return the URL of a bound socket, without a slash at its end."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def host_name(header: str) -> str | None:
    """Return the name or address in a header Host, without its port; None for what is none."""
    name, port = header.strip().lower(), ""
    if name.startswith("["):
        name, _, port = name[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in name:
        name, _, port = name.rpartition(":")
    is_right = bool(name) and (not port or (port.isascii() and port.isdigit()))
    return name.removesuffix(".") if is_right else None


def is_address(name: str) -> bool:
    """Return whether `name` is an IP address, which no name server can turn into another's."""
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False
