"""Progress where no terminal shows it: a line a minute on standard error."""

from __future__ import annotations

import time

from pgqueue_embed.cli.display import progress_console, say

# Often enough for a person who wonders, seldom enough for a file.
LINE_SECONDS = 60.0


class MinuteLines:
    """Says how far something is, in a line a minute on standard error; nothing at a terminal."""

    def __init__(self) -> None:
        self._is_mute = progress_console().is_terminal
        self._next = time.monotonic() + LINE_SECONDS

    def say(self, text: str) -> None:
        """Say `text`, if the last line was a minute ago."""
        if not self._is_mute and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            say(text, err=True)
