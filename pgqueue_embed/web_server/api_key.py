"""The key that clients have to bring: from a file of one's own or the environment, never `ps`."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pgqueue_embed.errors import UsageError
from pgqueue_embed.untrusted.bounded_file import UnreadableFile, read_bounded

KEY_VARIABLE = "PGEMBED_API_KEY"
MOST_KEY_BYTES = 4096

# 16 random letters and digits have 95 bits.
LEAST_CHARACTERS = 16


class ApiKey:
    """A secret that is compared in constant time; no text of it shows the key."""

    def __init__(self, key: str, origin: str) -> None:
        """Take the key that `origin` holds; raises UsageError for one that is easily guessed."""
        if len(key) < LEAST_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                f"{origin}: give a key of at least {LEAST_CHARACTERS} letters and digits without a"
                " space; one is made by: openssl rand -hex 32"
            )
        self._key = key.encode()

    def __repr__(self) -> str:
        return "ApiKey(***)"

    def is_in(self, authorization: str | None) -> bool:
        """Return whether a header Authorization brings the key: ``Bearer KEY``, or Basic.

        Basic is what browsers ask a person for; the key is the password, the user may be any.
        """
        scheme, _, value = (authorization or "").strip().partition(" ")
        given = value.strip().encode("utf-8", "replace")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self._key)


def find_api_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKey | None:
    """Return the key of `file`, else that of PGEMBED_API_KEY, else None.

    Raises UsageError for a file that others may read, and for what is no key.
    """
    if file is not None:
        return ApiKey(_of_file(file), str(file))
    key = environment.get(KEY_VARIABLE)
    return None if key is None else ApiKey(key.strip(), KEY_VARIABLE)


def _of_file(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"{file} is no ordinary file; give one that holds the key")
        if stat.S_IMODE(mode) & 0o077:
            raise UsageError(f"others may read the key in {file}; run: chmod 600 {file}")
        return read_bounded(file, MOST_KEY_BYTES).strip()
    except OSError as error:
        raise UsageError(f"cannot read the key in {file}: {error.strerror}") from None
    except UnreadableFile as error:
        raise UsageError(f"{error}; it is to hold a key alone") from None
