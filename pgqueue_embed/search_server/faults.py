"""The answers to errors: the status, and one line in the words of JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

import psycopg

from pgqueue_embed.db.errors import refused
from pgqueue_embed.db.faults import error_type
from pgqueue_embed.db.session import OutOfTime
from pgqueue_embed.errors import PgembedError, as_arguments
from pgqueue_embed.log import get_logger
from pgqueue_embed.search_server.overload import RETRY_AFTER_SECONDS


@dataclass(frozen=True, kw_only=True)
class ErrorReply:
    """What a client is told: an HTTP status, one line, and headers."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


# What is worth trying again has a status that says so.
WORTH_TRYING_AGAIN = (429, 503)


def told(error: Exception) -> ErrorReply:
    """Return what a client is told of `error`; what was not expected is logged."""
    status = _status(error)
    if status == 500:
        get_logger().error("request failed", exc_info=error)
        return ErrorReply(status=500, message="an error of the server, described in its log")
    message = refused(error) if _is_plain_database_error(error) else str(error)
    again = {"retry-after": str(RETRY_AFTER_SECONDS)} if status in WORTH_TRYING_AGAIN else {}
    return ErrorReply(status=status, message=as_arguments(message), headers=again)


def _status(error: Exception) -> int:
    if isinstance(error, PgembedError):
        return error.status
    if isinstance(error, psycopg.Error):
        return error_type(error).status
    return 500


def _is_plain_database_error(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and not isinstance(error, OutOfTime)
