"""Logging: one event per change of state, lower case, with its values as fields.

A process of ours writes lines as `configure` was told. In another program's process, where nothing
calls it, events go to the logger "pgqueue_embed" of the standard library, and structlog's own
settings, which are theirs, are neither used nor changed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO, cast

from pgqueue_embed.errors import UsageError
from pgqueue_embed.log.log_file import LogFile
from pgqueue_embed.log.masking import mask
from pgqueue_embed.untrusted.foreign_text import printable_lines

LEVELS = ("debug", "info", "warning", "error")

# What Python's own logging calls them besides.
OTHER_LEVEL_NAMES = {"warn": "warning", "critical": "error", "fatal": "error"}
FORMATS = ("console", "json")

LOGGER = "pgqueue_embed"


class Forwarding(logging.Handler):
    """Hands what a library logs to our log, as an event named after the library.

    At level debug: what matters of it is raised, too.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Log one line of the library's."""
        get_logger().debug(record.name, said=record.getMessage())


class TolerantStream:
    """A stream whose loss ends nothing: one that was closed, a terminal too, or a full disk."""

    def __init__(self, stream: TextIO | LogFile) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write `text`, or lose it."""
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def close(self) -> None:
        """Close the stream."""
        with suppress(OSError, ValueError):
            self._stream.close()

    def isatty(self) -> bool:
        """Return whether a person looks at the stream."""
        return self._stream.isatty()


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Where and how a process logs: level, file (stderr if None) and style, console or json."""

    level: str = "info"
    file: str | None = None
    style: str = "console"

    def apply(self) -> None:
        """Configure the log of this process; raises UsageError like `configure`."""
        configure(level=self.level, file=Path(self.file) if self.file else None, style=self.style)


def configure(*, level: str = "info", file: Path | None = None, style: str = "console") -> None:
    """Send log events of `level` and above to stderr, or to `file`, as lines of `style`.

    A level may be in capitals. Raises UsageError for an unknown level or style, or a file that
    cannot be written.
    """
    level = OTHER_LEVEL_NAMES.get(level.lower(), level.lower())
    if level not in LEVELS:
        raise UsageError(f"unknown log level '{level}'; choose one of {', '.join(LEVELS)}")
    if style not in FORMATS:
        raise UsageError(f"unknown log format '{style}'; choose one of {', '.join(FORMATS)}")
    import structlog

    stream = cast(TextIO, TolerantStream(_open(file) if file else sys.stderr))
    _how.update(
        logger=structlog.WriteLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            _stamp_in_utc
            if style == "json"
            else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            # As text, and before it is masked: a renderer's own traceback shows local variables.
            structlog.processors.format_exc_info,
            _mask_values,
            _renderer(style, stream),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
    logging.getLogger("psycopg").handlers = [Forwarding()]


def get_logger(**values: Any) -> Any:
    """Return a logger that adds `values` to every event."""
    # It takes a good part of a command's time, and most commands log nothing.
    import structlog

    if not _how:
        _how.update(_of_another_program())
    return structlog.wrap_logger(
        **_how, context_class=dict, cache_logger_on_first_use=False, **values
    )


def _open(file: Path) -> LogFile:
    try:
        return LogFile(file)
    except OSError as error:
        raise UsageError(f"cannot write the log file {file}: {error.strerror}") from None


def _renderer(style: str, stream: TextIO) -> Any:
    import structlog

    if style == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    return structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=24)


def _stamp_in_utc(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the time with its offset: logs of machines in several zones are read together."""
    event["timestamp"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return event


def _mask_values(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {name: _masked(value) for name, value in event.items()}


def _as_text(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str], dict[str, Any]]:
    """Return what a method of a standard logger takes: ``batch committed pipeline=reports``."""
    name, trace = event.pop("event"), event.pop("exception", None)
    words = [str(name), *(f"{field}={value}" for field, value in event.items())]
    return (" ".join(words) + (f"\n{trace}" if trace else ""),), {}


def _masked(value: Any) -> Any:
    if isinstance(value, (str, BaseException)):
        return printable_lines(mask(str(value)))
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(item) for item in value]
    return value


# How a logger is made, as structlog.wrap_logger takes it; empty until the first one is.
_how: dict[str, Any] = {}


def _of_another_program() -> dict[str, Any]:
    """Return how a logger is made in a process where nothing calls `configure`."""
    import structlog

    return {
        "logger": logging.getLogger(LOGGER),
        "processors": [
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            _mask_values,
            _as_text,
        ],
        "wrapper_class": structlog.stdlib.BoundLogger,
    }
