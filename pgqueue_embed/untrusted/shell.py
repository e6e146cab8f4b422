"""Commands as a person types them in a shell, whatever the names in them hold."""

from __future__ import annotations

import shlex


def command(*words: str) -> str:
    """Return the pgembed command of `words` as one types it in a shell."""
    return shlex.join(["pgembed", *words])
