"""Every error that pgembed raises on purpose, as one tree.

The number is `status`, the kind of an error for a program, as HTTP has it: what is below has the
same one, but where another is given.

PgembedError               500 one line for a person: what, why and the way out
├── UsageError             400 the request itself is wrong (exit code 2)
│   └── NotFound           404 what it names is not there: a pipeline, a record
├── DatabaseUnavailable    503 no connection; worth trying again
├── SetupError             503 the database, model or machine is not ready for work
│   ├── MigrationError         schema pgembed is absent, older or newer than this program
│   ├── ModelError             the model cannot be found, loaded or used
│   │   └── ModelMismatch      the local model is not the pipeline's model
│   ├── LocalServerError    the private PostgreSQL cannot be installed, started or stopped
│   └── MachineFault           this machine kills its worker processes
├── PipelineFault              a table of a pipeline refuses a statement: the pipeline is paused
│   └── RoleFault          403 it refuses this role alone: this worker leaves the pipeline out
│       ├── MissingRight       it lacks a right, whose GRANT the message has
│       └── UntrustedCode      code of a role with fewer rights would run with this one's
├── PipelineReplaced       503 its next generation replaced it meanwhile; worth trying again
├── SearchTimeout          503 a search took longer than it may; worth trying again
├── LeaseLost                  the server took the claim back; nothing was written
│   └── LeaseExpired           this process made no progress for a whole lease
└── RecordFault                one record cannot be embedded: it is retried, then dead-lettered
"""

from __future__ import annotations

import re

from pgqueue_embed.untrusted.foreign_text import printable

# Two or three sentences, with some names in them.
MOST_CHARACTERS = 8_000


class PgembedError(Exception):
    """Base of all errors meant for a person; its text is one line, and fit to be printed.

    `status` is the kind as HTTP has it: 400 for a wrong request, 403 without the right, 404 for
    what is not there, 503 for what may be there later, else 500.
    """

    exit_code = 1
    status = 500

    def __str__(self) -> str:
        return printable(super().__str__(), MOST_CHARACTERS)


# A command is to be typed as it is.
_COMMAND_OR_OPTION = re.compile(r"(?<!\w)(?:pgembed [^;,]*|--([a-z][a-z-]*))")


def as_arguments(message: str) -> str:
    """Return a message that names arguments and fields of JSON where options are meant.

    A command that it names, ``pgembed …`` up to a comma or semicolon, keeps its options.
    """
    return _COMMAND_OR_OPTION.sub(
        lambda found: found[0] if found[1] is None else found[1].replace("-", "_"), message
    )


class UsageError(PgembedError):
    """The request itself is wrong: a column that is not there, a number out of range."""

    exit_code = 2
    status = 400


class NotFound(UsageError):
    """What the request names is not there: a pipeline, or a record among its vectors."""

    status = 404


class DatabaseUnavailable(PgembedError):
    """PostgreSQL does not answer, or refuses the connection."""

    status = 503


class SetupError(PgembedError):
    """The database, the model or the machine is not ready for work."""

    status = 503


class MigrationError(SetupError):
    """Schema pgembed is absent, older or newer than this program."""


class ModelError(SetupError):
    """The model cannot be found, loaded or used."""


class ModelMismatch(ModelError):
    """The local model is not the one that the pipeline was created with."""


class LocalServerError(SetupError):
    """The private PostgreSQL cannot be installed, started or stopped."""


class MachineFault(SetupError):
    """This machine kills its worker processes, whichever records they hold."""


class PipelineFault(PgembedError):
    """A table, view or function of a pipeline refuses what a worker has to do; it is paused.

    `is_of_the_table` tells that its table says so to whatever is asked of it: it is not there, say.
    """

    def __init__(self, message: str, *, is_of_the_table: bool = False) -> None:
        super().__init__(message)
        self.is_of_the_table = is_of_the_table


class RoleFault(PipelineFault):
    """This role may not do what the pipeline needs, and another one may: nothing is paused."""

    status = 403


class MissingRight(UsageError, RoleFault):
    """This role may not read what a search needs; the message has the GRANT."""

    status = 403


class UntrustedCode(UsageError, RoleFault):
    """Code of a role with fewer rights would run with the rights of this one."""

    status = 403


class PipelineReplaced(PgembedError):
    """The next generation replaced a pipeline while it was read or queued."""

    status = 503


class SearchTimeout(PgembedError):
    """PostgreSQL ended a search that took longer than it may."""

    status = 503


class LeaseLost(PgembedError):
    """The server took the claim back before it was committed."""


class LeaseExpired(LeaseLost):
    """This process told the server nothing of the claim for a whole lease."""


class RecordFault(PgembedError):
    """One record cannot be embedded, and it is the record's fault."""
