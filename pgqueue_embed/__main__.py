"""The command `pgembed`: runs the command line and turns errors into one line and an exit code."""

import sys

from pgqueue_embed.search_path import leave_out_working_folder


def main() -> None:
    """Run the command line; exits with 0 when done, 1 when it failed, 2 for wrong usage."""
    leave_out_working_folder()
    from pgqueue_embed.cli.app import app
    from pgqueue_embed.errors import PgembedError

    try:
        app()
    except PgembedError as error:
        _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted; what was committed stays, everything else is still queued", 130)
    except Exception as error:
        if not _is_database_error(error):
            raise
        from pgqueue_embed.connect import first_line

        _complain(f"the database refused: {first_line(error)}", 1)


def _is_database_error(error: Exception) -> bool:
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(error, psycopg.Error)


def _complain(message: str, exit_code: int) -> None:
    from pgqueue_embed.foreign_text import printable
    from pgqueue_embed.log import mask

    prefix = "\x1b[31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    sys.stderr.write(f"{prefix} {printable(mask(message))}\n")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
