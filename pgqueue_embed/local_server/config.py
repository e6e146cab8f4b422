"""The server's settings: the file ``embedded.conf``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pgqueue_embed.local_server.ports import HOST

# For loading many vectors on a workstation that does other work too. Durability is PostgreSQL's
# default (fsync, synchronous_commit and full_page_writes stay on): a commit survives a power cut.
SERVER_SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    # TCP only: the path of a socket in a data folder soon passes the limit (macOS: 103 bytes).
    "unix_socket_directories": "",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "cluster_name": "pgembed",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "512MB",
    "random_page_cost": "1.1",
    "jit": "off",
    # A private server has no replicas; this spares the log of bulk loading.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_compression": "on",
    "min_wal_size": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
}
SHARED_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 (only looked at)
ENOUGH_SHARED_MEMORY_BYTES = 1024**3
_PORT_LINE = re.compile(r"^port = '(\d{1,5})'$", re.MULTILINE)


def config_text(port: int, extra_settings: Mapping[str, str]) -> str:
    """Return the text of ``embedded.conf``; ``extra_settings`` win over ours."""
    settings = {
        **SERVER_SETTINGS,
        **machine_settings(SHARED_MEMORY_FOLDER),
        **extra_settings,
        "port": str(port),
    }
    lines = [f"{name} = '{_quoted(value)}'" for name, value in settings.items()]
    return "\n".join(["# Written by pgembed at every start; changes are lost.", *lines, ""])


def machine_settings(shared_memory_folder: Path) -> Mapping[str, str]:
    """Return what this machine needs besides.

    A container's /dev/shm has 64 MB, and a parallel build of a vector index wants as much as
    maintenance_work_mem there: System V memory has no such limit. macOS has no such folder.
    """
    if not shared_memory_folder.is_dir():
        return {}
    if shutil.disk_usage(shared_memory_folder).total >= ENOUGH_SHARED_MEMORY_BYTES:
        return {}
    return {"dynamic_shared_memory_type": "sysv"}


def configured_port(text: str) -> int | None:
    """Return the port that a ``embedded.conf`` names."""
    found = _PORT_LINE.search(text)
    return int(found[1]) if found else None


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
