"""A program on a terminal of the test's: what it shows, keys for it, how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
from rich.cells import cell_len

from pgqueue_embed.cli.terminal import BEGIN_PICTURE, END_PICTURE
from tests.support.conditions import wait_until

COLOUR = re.compile(r"\x1b\[[0-9;]*m")

LIGHT_COMMAND = "tests.support.light_command"

# Starts the program as a shell does: in a process group of its own, which has the terminal. If it
# led its session, it could not be stopped.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios

def begin():
    os.setpgrp()
    os.tcsetpgrp(0, os.getpgrp())
    for number in (signal.SIGTTOU, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
program = subprocess.Popen(sys.argv[1:], preexec_fn=begin)
code = program.wait()
sys.exit(code if code >= 0 else 128 - code)
"""


class Tty:
    """A program that runs on a terminal of its own."""

    def __init__(self, shell: subprocess.Popen[bytes], main: int, other: int) -> None:
        self._read = b""
        self._shell = shell
        self._main = main
        self._other = other

    @property
    def program(self) -> psutil.Process:
        """The program itself."""
        wait_until(psutil.Process(self._shell.pid).children, "the program is started")
        return psutil.Process(self._shell.pid).children()[0]

    def read(self) -> str:
        """Take in what was written since, and return all of it."""
        while select.select([self._main], [], [], 0)[0]:
            self._read += os.read(self._main, 65536)
        return self.shown

    @property
    def shown(self) -> str:
        """All that was read so far; the terminal's driver has doubled some carriage returns."""
        return self._read.decode(errors="replace").replace("\r\r", "\r")

    def picture(self) -> list[str]:
        """Return the lines of the last whole picture, without colours."""
        whole = self.read().split(END_PICTURE)[:-1]
        last = whole[-1].split(BEGIN_PICTURE)[-1] if whole else ""
        return [COLOUR.sub("", line).rstrip() for line in last.split("\x1b[K\r\n")]

    def text(self) -> str:
        """Return the last whole picture as a text."""
        return "\n".join(self.picture()).replace("\x1b[K", "")

    def wait_for(self, words: str) -> None:
        """Return once `words` are in the picture."""
        self.wait_until(lambda: words in self.text(), f"{words!r} is shown")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Return once `condition()` is true; fails the test with what was shown."""
        try:
            wait_until(condition, what, seconds=60.0)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; shown:\n{self.text()}\n{self.shown[-2000:]!r}"
            ) from None

    def press(self, keys: str) -> None:
        """Press `keys`."""
        os.write(self._main, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        _set_size(self._other, columns, lines)

    def attributes(self) -> list[Any]:
        """Return how the terminal treats keys and output."""
        return termios.tcgetattr(self._other)

    def is_raw(self) -> bool:
        """Return whether keys come one by one, and unseen."""
        return not self.attributes()[3] & (termios.ICANON | termios.ECHO)

    def widest(self) -> int:
        """Return the columns of the widest line of the picture."""
        return max(cell_len(line) for line in self.text().splitlines())

    def wait(self) -> int:
        """Return the exit code, once the program has ended."""

        def has_ended() -> bool:
            self.read()
            return self._shell.poll() is not None

        self.wait_until(has_ended, "the program ends")
        self.read()
        return int(self._shell.returncode)


def _set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def on_terminal(
    conninfo: str,
    *words: str,
    columns: int = 100,
    lines: int = 30,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Tty]:
    """Run ``pgembed *words``, with light workers, on a terminal of this size."""
    main, other = pty.openpty()
    _set_size(other, columns, lines)
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    shell = subprocess.Popen(
        [sys.executable, "-c", SHELL, sys.executable, "-m", LIGHT_COMMAND, *words],
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        env={**clean, "PGEMBED_DSN": conninfo, "TERM": "xterm-256color", **(environment or {})},
    )
    try:
        yield Tty(shell, main, other)
    finally:
        if shell.poll() is None:
            for process in psutil.Process(shell.pid).children(recursive=True):
                process.kill()
        shell.kill()
        shell.wait()
        os.close(main)
        os.close(other)
