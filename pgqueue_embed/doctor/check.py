"""The outcome of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import psycopg

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.log import mask


class Mark(Enum):
    """How a check ended; work cannot run after a failure, and may disappoint after a warning."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    mark: Mark
    subject: str
    finding: str
    fix: str | None = None


def ok(subject: str, finding: str) -> Check:
    """Return a check that found what it should."""
    return Check(mark=Mark.OK, subject=subject, finding=finding)


def warning(subject: str, finding: str, fix: str | None = None) -> Check:
    """Return a check that found something to know before working."""
    return Check(mark=Mark.WARNING, subject=subject, finding=finding, fix=fix)


def failed(subject: str, finding: str, fix: str | None = None) -> Check:
    """Return a check that found why work cannot run."""
    return Check(mark=Mark.FAILED, subject=subject, finding=finding, fix=fix)


def guarded_checks(subject: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Run `checks`; what one of them raises is its failure, so that the next ones go on."""
    try:
        yield from checks()
    except PgembedError as error:
        yield failed(subject, mask(str(error)))
    except psycopg.Error as error:
        yield failed(subject, mask(first_line(error)))
