"""Units of systemd: of a user, or of the system. See systemd.service(5) and systemd.syntax(7)."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.errors import SetupError
from pgqueue_embed.service.job import RESTART_SECONDS, STOP_SECONDS, Job
from pgqueue_embed.service.programs import run_program, succeeds

SYSTEM_FOLDER = Path("/etc/systemd/system")
LINGERING_USERS = Path("/var/lib/systemd/linger")

# KillMode=mixed signals the supervisor alone: a worker process that gets it twice rolls its claims
# back. Exit code 2 says that the command itself is wrong.
UNIT = """\
[Unit]
Description=pgembed, embeds text of PostgreSQL tables
{after}
[Service]
{user}{environment}ExecStart={command}
KillMode=mixed
TimeoutStopSec={stop_seconds}
Restart=always
RestartSec={restart_seconds}
RestartPreventExitStatus=2

[Install]
WantedBy={target}
"""
# A user's manager knows nothing of the network.
AFTER_NETWORK = "After=network-online.target\nWants=network-online.target\n"


@dataclass(frozen=True, kw_only=True)
class Systemd:
    """Fulfils job.Manager; `is_system` for units that start at boot, before anybody logs in."""

    is_system: bool

    def file(self, name: str) -> Path:
        """Return the path of the unit."""
        folder = SYSTEM_FOLDER if self.is_system else _user_folder()
        return folder / _unit(name)

    def content(self, job: Job) -> bytes:
        """Return the unit."""
        environment = (
            f"Environment={_quoted(f'{name}={value}')}\n" for name, value in job.environment.items()
        )
        return UNIT.format(
            after=AFTER_NETWORK if self.is_system else "",
            user=f"User={job.user}\n" if job.user else "",
            environment="".join(environment),
            command=" ".join(_quoted(word).replace("$", "$$") for word in job.command),
            stop_seconds=STOP_SECONDS,
            restart_seconds=RESTART_SECONDS,
            target="multi-user.target" if self.is_system else "default.target",
        ).encode()

    def load(self, name: str) -> None:
        """Enable the unit and start it; one that runs is stopped first."""
        self._reach()
        run_program([*self._systemctl, "enable", _unit(name)])
        run_program([*self._systemctl, "restart", _unit(name)])

    def _reach(self) -> None:
        """Have the files read; raises SetupError with the way out where nothing manages units."""
        try:
            run_program([*self._systemctl, "daemon-reload"])
        except SetupError as error:
            if self.is_system or "bus" not in str(error):
                raise
            raise SetupError(
                f"{error}; units of yours take a session: log in as yourself, or give --system"
            ) from None

    def unload(self, name: str) -> None:
        """Stop and disable the unit."""
        succeeds([*self._systemctl, "disable", "--now", _unit(name)])

    def forget(self) -> None:
        """Have the files read anew."""
        succeeds([*self._systemctl, "daemon-reload"])

    def is_running(self, name: str) -> bool:
        """Return whether it runs."""
        return succeeds([*self._systemctl, "is-active", "--quiet", _unit(name)])

    def log(self, name: str) -> str:
        """Return how to read its log: systemd keeps and trims it."""
        return f"journalctl {'' if self.is_system else '--user '}-u {_unit(name)} -f"

    def notes(self, name: str) -> tuple[str, ...]:
        """Say that a user's units end when the user logs out."""
        if self.is_system or (LINGERING_USERS / getpass.getuser()).exists():
            return ()
        return ("it ends when you log out, unless you say once: loginctl enable-linger",)

    @property
    def _systemctl(self) -> tuple[str, ...]:
        return ("systemctl",) if self.is_system else ("systemctl", "--user")


def _user_folder() -> Path:
    from platformdirs import user_config_path

    return user_config_path("systemd") / "user"


def _unit(name: str) -> str:
    return f"{name}.service"


def _quoted(word: str) -> str:
    """Return a word as systemd reads it back: in double quotes, with no specifier in it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
