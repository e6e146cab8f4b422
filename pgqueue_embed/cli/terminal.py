"""A terminal as a screen: drawn as a whole, keys read one by one, left as it was found.

Whatever ends or stops the program gives the terminal back first: the end of the block, an error in
it, Ctrl-Z, Ctrl-\\.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, TextIO

try:
    import termios
    import tty
except ImportError:  # no terminal of this kind: what is shown is lines then
    termios = None  # type: ignore[assignment]

# The other screen, without a cursor; and back.
ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
LEAVE = "\x1b[?25h\x1b[?1049l"

# A terminal that knows it shows the whole picture at once; others ignore it.
BEGIN_PICTURE = "\x1b[?2026h\x1b[H"
END_PICTURE = "\x1b[J\x1b[?2026l"

ESCAPE = "\x1b"

# Smaller ones are taken for terminals that do not tell.
FALLBACK = os.terminal_size((80, 24))


def is_screen(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal on which a cursor can be moved."""
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return termios is not None and not dumb and stream.isatty()


class Terminal:
    """The terminal of a stream, for the length of a block; see `is_screen`.

    Keys are those of standard input, if that is a terminal, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = os.dup(stream.fileno())
        self._keyboard = sys.stdin.fileno() if _is_open_terminal(sys.stdin) else None
        self._before: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._size = FALLBACK
        self._is_drawn = False

    @property
    def has_keys(self) -> bool:
        """Whether a key can be pressed."""
        return self._keyboard is not None

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines at this moment."""
        try:
            found = os.get_terminal_size(self._stream)
        except OSError:
            return FALLBACK
        return found if found.columns and found.lines else FALLBACK

    def __enter__(self) -> Terminal:
        for number, handler in (
            (signal.SIGTSTP, self._stop),
            (signal.SIGCONT, self._go_on),
            (signal.SIGQUIT, self._quit),
        ):
            self._handlers[number] = signal.signal(number, handler)
        try:
            self._take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._stream)

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines`, none of which is wider than the terminal, and nothing else."""
        size = self.size
        if size != self._size or not self._is_drawn:
            self._write("\x1b[2J")
        self._size, self._is_drawn = size, True
        shown = "\x1b[K\r\n".join(lines[: size.lines])
        self._write(f"{BEGIN_PICTURE}{shown}\x1b[K{END_PICTURE}")

    def is_resized(self) -> bool:
        """Return whether the terminal has another size than when it was drawn, or is empty."""
        return self.size != self._size or not self._is_drawn

    def keys(self, wait_seconds: float = 0.0) -> Iterator[str]:
        """Yield the keys that were pressed; waits for the first one, if any."""
        if self._keyboard is None:
            return
        with suppress(InterruptedError):
            while select.select([self._keyboard], [], [], wait_seconds)[0]:
                pressed = os.read(self._keyboard, 1024).decode(errors="replace")
                if not pressed:
                    self._keyboard = None  # closed: it would be ready for ever
                    return
                yield from _keys_in(pressed)
                wait_seconds = 0.0

    def _take(self) -> None:
        if self._keyboard is not None:
            self._before = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard)
        self._write(ENTER)
        self._is_drawn = False

    def _give_back(self) -> None:
        self._write(LEAVE)
        if self._before is not None and self._keyboard is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)
        self._before = None

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # It goes on here, once it is in the foreground again.
        signal.signal(number, self._stop)
        self._take()

    def _go_on(self, _number: int, _: FrameType | None) -> None:
        """Draw anew after a stop that could not be heard, by SIGSTOP."""
        if self._before is not None or self._keyboard is None:
            self._give_back()
            self._take()

    def _quit(self, number: int, _: FrameType | None) -> None:
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _write(self, text: str) -> None:
        """Write `text`, or lose it: work goes on when a terminal was closed."""
        left = text.encode(errors="replace")
        with suppress(OSError):
            while left:
                left = left[os.write(self._stream, left) :]


def _is_open_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _keys_in(pressed: str) -> Iterator[str]:
    """Yield single letters; a sequence, such as that of an arrow, as a whole."""
    while pressed:
        length = 1
        if pressed[0] == ESCAPE and pressed[1:2] in ("[", "O"):
            ends = (at for at, letter in enumerate(pressed) if at > 1 and _ends_sequence(letter))
            length = next(ends, len(pressed)) + 1
        yield pressed[:length]
        pressed = pressed[length:]


def _ends_sequence(letter: str) -> bool:
    return letter.isalpha() or letter == "~"
