"""The command `pgembed`: runs the command line and turns errors into one line and an exit code."""

import os
import sys

from pgqueue_embed.untrusted.search_path import leave_out_working_folder

# Python has more to load than what has been loaded: `signal`, for one.
leave_out_working_folder()

import atexit  # noqa: E402
import errno  # noqa: E402
import signal  # noqa: E402
from contextlib import suppress  # noqa: E402

from pgqueue_embed.garbage import collect_seldom  # noqa: E402

# Of a stream: an error of a file has its name.
OUTPUT_FAULTS = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF)

# What asks a process to leave besides Ctrl-C. Left at once, the server would go on with its
# statement: with the build of an index for hours.
TERMINATING = (signal.SIGTERM, signal.SIGHUP)

INTERRUPTED_CODE = 130
INTERRUPTED = "interrupted; what was committed stays, and what is queued waits"


def command() -> None:
    """Run the command line in a process of its own; exits as `main` does."""
    collect_seldom()
    end = _End()
    # What is registered first comes last, behind whatever others have to clear away.
    atexit.register(end.leave)
    try:
        main()
    except SystemExit as asked:
        end.code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        raise
    except BaseException:
        end.code = 1
        raise


class _End:
    """Ends the process with `code` once all is said and cleared away.

    A thread of ours, or of a library, may be anywhere by then: in a driver, loading a model,
    writing a line. Python would take apart what it stands on, and what has done its work would end
    in a fatal error.
    """

    def __init__(self) -> None:
        self.code = 0

    def leave(self) -> None:
        """Write out what was said, and leave."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)


def main() -> None:
    """Run the command line; exits with 0 when done, 1 when it failed, 2 for wrong usage."""
    _open_what_is_closed()
    with _LeavingAtOnce():
        from pgqueue_embed.cli.app import app
        from pgqueue_embed.errors import PgembedError

    _listen()
    try:
        _refuse_other_encodings()
        app()
    except SystemExit as end:
        _flush()
        if end.code == INTERRUPTED_CODE:  # Typer leaves without a word
            _say_interrupted()
        raise
    except PgembedError as error:
        _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        _say_interrupted()
    except UnicodeError as error:
        _complain(f"something that was given is not UTF-8: {error.reason}", 2)  # type: ignore[attr-defined]
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_FAULTS:
            raise
        _give_up_output(error)
    except Exception as error:
        if not _is_database_error(error):
            raise
        from pgqueue_embed.db.errors import refused

        _complain(refused(error), 1)


def _listen() -> None:
    for number in TERMINATING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> None:
    """Unwind as at Ctrl-C, which cancels the statement in hand; end by the signal itself then."""
    atexit.register(_end_by, number)
    raise KeyboardInterrupt


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class _LeavingAtOnce:
    """Ctrl-C ends the process in one line while libraries are imported, which would not."""

    def __enter__(self) -> None:
        # Whoever started us with signals ignored, such as nohup, keeps it so.
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._leave)

    def __exit__(self, *_: object) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)

    @staticmethod
    def _leave(*_: object) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(INTERRUPTED_CODE)


def _open_what_is_closed() -> None:
    """Put nothing in the place of standard streams that are closed, and let none refuse a letter.

    A connection would get the number of a closed one, and be written to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = os.fdopen(descriptor, "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _refuse_other_encodings() -> None:
    from pgqueue_embed.errors import UsageError

    for argument in sys.argv[1:]:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(f"the argument {argument} is not UTF-8")


def _flush() -> None:
    """Say now what standard output refuses, rather than as a traceback at the end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up_output(error)


def _give_up_output(error: OSError) -> None:
    """Write no more to standard output; a reader that has left, as `head` does, is no fault."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        sys.exit(1)
    _complain(f"cannot write to standard output: {error.strerror}", 1)


def _is_database_error(error: Exception) -> bool:
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(error, psycopg.Error)


def _say_interrupted() -> None:
    with suppress(OSError):
        sys.stderr.write(f"{INTERRUPTED}\n")
    sys.exit(INTERRUPTED_CODE)


def _complain(message: str, exit_code: int) -> None:
    from pgqueue_embed.log import mask
    from pgqueue_embed.untrusted.foreign_text import printable

    prefix = "\x1b[31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    with suppress(OSError):
        sys.stderr.write(f"{prefix} {printable(mask(message))}\n")
    sys.exit(exit_code)


if __name__ == "__main__":
    command()
