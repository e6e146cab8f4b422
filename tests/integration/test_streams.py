"""Standard streams that are closed, full or narrow, arguments that are none, and Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import pgembed

PGEMBED = str(Path(sys.executable).with_name("pgembed"))


def run(shell: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line of sh, in which $P is pgembed."""
    environment = {**os.environ, "P": PGEMBED, **variables}
    return subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$P" --help >/dev/full', 1, b"cannot write to standard output"),
        ('"$P" status --json >/dev/full', 1, b"cannot write to standard output"),
        ('"$P" status >&-', 0, b""),
        ('"$P" status --json >&- <&- 2>&-', 0, b""),
        ('"$P" status --json | true', 0, b""),
        ('"$P" status "$(printf "\\377")"', 2, b"is not UTF-8"),
    ],
)
def test_stream_or_argument_that_is_unfit_is_no_traceback(
    conninfo: str, shell: str, code: int, said: bytes
) -> None:
    done = run(shell, PGEMBED_DSN=conninfo)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert said in done.stderr
    assert done.returncode == code, done.stderr


def test_password_on_the_command_line_is_warned_of(conninfo: str) -> None:
    for options in (["--dsn", conninfo], ["--db-host", "127.0.0.1", "--db-password", "secret"]):
        said = pgembed(conninfo, "status", *options).stderr
        name = "--dsn" if "--dsn" in options else "--db-password"
        assert f"warning: the password in {name} shows in `ps`" in said


# The doctor asks torch, which takes seconds to import, for its version alone.
SEVERAL = """
import sys
from types import SimpleNamespace
from pgqueue_embed.__main__ import main

sys.modules["torch"] = SimpleNamespace(__version__="2")

for words in ("--help", "status", "status --json", "doctor --model ./absent --dsn host=/nowhere"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as end:
        print(f"<end {end.code or 0}>")
"""


def test_terminal_of_ascii_alone_is_told_in_escapes_what_it_cannot_show(conninfo: str) -> None:
    """What cannot be done has an arrow to the way out."""
    program = (sys.executable, "-c", SEVERAL)
    done = run(shlex.join(program), PGEMBED_DSN=conninfo, PYTHONIOENCODING="ascii")
    assert done.stderr == b"", "nor is a password in a variable warned of"
    told = re.split(rb"<end (\d)>\n", done.stdout)
    assert told[1::2] == [b"0", b"0", b"0", b"1"]
    assert all(told[:-1])
    assert rb" \u2192 check" in told[-3]
    assert (done.returncode, told[-1]) == (0, b"")


def test_ctrl_c_is_one_line_whenever_it_comes(conninfo: str) -> None:
    ended = []
    for hundredths in range(5, 100, 16):
        process = subprocess.Popen(
            [PGEMBED, "status"],
            env={**os.environ, "PGEMBED_DSN": conninfo},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            process.wait(hundredths / 100)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        ended.append((process.returncode, said))
    interrupted = [said for code, said in ended if code == 130]
    assert interrupted
    assert all(said.count(b"\n") == 1 and b"interrupted" in said for said in interrupted)
