"""Makes, shows and removes a worker that the system keeps alive."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.service.job import Job, Manager
from pgqueue_embed.service.launchd import Launchd
from pgqueue_embed.service.systemd import Systemd
from pgqueue_embed.whole_file import replacing

# What the worker would miss that a person's shell has: where models and the private server are.
KEPT_VARIABLES = (
    *("PGEMBED_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("XDG_CACHE_HOME", "XDG_DATA_HOME"),
)
DSN_FILE = "PGEMBED_DSN_FILE"
SYSTEM_CONFIGURATION = Path("/etc/pgembed")


@dataclass(frozen=True, kw_only=True)
class ServicePlace:
    """Where a service lives: the files of one `name`, and the manager that they are for."""

    name: str
    manager: Manager
    dsn_file: Path

    @classmethod
    def of(cls, name: str, *, is_system: bool) -> ServicePlace:
        """Return the place of a service of this user, or of the system."""
        from platformdirs import user_config_path

        if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise UsageError(f"--name {name}: give letters, digits, - and _")
        folder = SYSTEM_CONFIGURATION if is_system else user_config_path("pgembed")
        manager = Launchd if sys.platform == "darwin" else Systemd
        return cls(
            name=name,
            manager=manager(is_system=is_system),
            dsn_file=folder / f"{name}.dsn",
        )

    @property
    def is_installed(self) -> bool:
        """Whether the service's file is there."""
        return self.manager.file(self.name).exists()


def connection_string(connection: Connection) -> str | None:
    """Return all that names the database of a connection, the password too.

    None for the private server: a worker finds it, and starts it if need be.
    """
    from psycopg.conninfo import make_conninfo

    if connection.place_if_private:
        return None
    password = {"password": connection.info.password} if connection.info.password else {}
    return make_conninfo("", **{**connection.info.get_parameters(), **password})


def install(
    place: ServicePlace,
    arguments: tuple[str, ...],
    dsn: str | None,
    *,
    user: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[Path]:
    """Write and load a service that runs `pgembed work ARGUMENTS`; returns the files written.

    One of this name is replaced. The connection string goes into a file that only its owner can
    read. Raises SetupError where a file cannot be written or the manager refuses; then what was
    there before is there again.
    """
    kept = {name: environment[name] for name in KEPT_VARIABLES if environment.get(name)}
    if dsn is not None:
        kept[DSN_FILE] = str(place.dsn_file)
    command = (sys.executable, "-m", "pgqueue_embed", "work", *arguments)
    job = Job(name=place.name, command=command, environment=kept, user=user)
    unit = place.manager.file(place.name)
    with _load_as_before(place), _restored(unit, place.dsn_file):
        if dsn is None:
            place.dsn_file.unlink(missing_ok=True)
        else:
            _write(place.dsn_file, f"{dsn}\n".encode(), mode=0o600, user=user)
        _write(unit, place.manager.content(job), mode=0o644)
        place.manager.load(place.name)
    return [unit, place.dsn_file] if dsn is not None else [unit]


def uninstall(place: ServicePlace) -> list[Path]:
    """Stop a service and remove its files; returns those that were there."""
    files = [place.manager.file(place.name), place.dsn_file]
    found = [file for file in files if file.exists()]
    if place.is_installed:
        place.manager.unload(place.name)
    with _clearly():
        for file in found:
            file.unlink()
    if found:
        place.manager.forget()
    return found


@contextmanager
def _load_as_before(place: ServicePlace) -> Iterator[None]:
    """Load what was there before, if what is done fails, or take back what was loaded in part."""
    try:
        yield
    except BaseException:
        with suppress(SetupError):
            if place.is_installed:
                place.manager.load(place.name)
            else:
                place.manager.unload(place.name)
                place.manager.forget()
        raise


@contextmanager
def _restored(*files: Path) -> Iterator[None]:
    """Put the files and their folders back as they were, if what is done with them fails."""
    with _clearly():
        missing = [each for file in files for each in file.parents if not each.exists()]
        before = {file: (file.read_bytes(), file.stat()) for file in files if file.exists()}
        try:
            yield
        except BaseException:
            for file in files:
                file.unlink(missing_ok=True)
            for file, (content, status) in before.items():
                _write(file, content, mode=status.st_mode & 0o777, user=status.st_uid)
            for folder in missing:
                with suppress(OSError):  # it holds files of others
                    folder.rmdir()
            raise


@contextmanager
def _clearly() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(f"cannot write {error.filename}: {error.strerror}") from None


def _write(file: Path, content: bytes, *, mode: int, user: str | int | None = None) -> None:
    """Replace a file as a whole; no other user can read it at any moment if `mode` says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(file, mode=mode, user=user) as new:
            new.write(content)
    except LookupError:
        raise UsageError(f"--run-as {user}: there is no such user") from None
