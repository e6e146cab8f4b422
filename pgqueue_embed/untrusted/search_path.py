"""Keeps the working folder off the module search path, unless PYTHONPATH names it.

`python -m` and `python -c` look there before everywhere else, and so does an empty element of
PYTHONPATH, which ``PYTHONPATH=$PYTHONPATH:/opt/lib`` leaves. Whoever could put a `psutil.py` to
where pgembed is started would run code in the process that has the database's credentials.

Imported while the path is not in order yet, so that it takes nothing but what Python has loaded.
"""

import os
import sys

VARIABLE = "PYTHONPATH"

# What stands in front of it is what Python and PYTHONPATH have put there for this one start.
STANDARD_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120

# Whoever can write there can write this package, too.
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
PACKAGE_PARENT = os.path.dirname(PACKAGE)  # noqa: PTH120


def leave_out_working_folder() -> None:
    """Take the working folder from this process's search path, before anything is looked for."""
    try:
        working_folder = os.getcwd()  # noqa: PTH109
    except OSError:
        return
    named = "" if sys.flags.ignore_environment else os.environ.get(VARIABLE, "")
    sys.path[:] = without(sys.path, working_folder, named)


def without(path: list[str], working_folder: str, named: str) -> list[str]:
    """Return `path` without `working_folder`, unless it is `named` as an element of PYTHONPATH.

    Behind the standard library it stays, where nothing can take another module's place: it is
    the source tree of an editable install then. The package's own parent is never lost.
    """
    if working_folder in map(os.path.abspath, elements(named)):
        return path
    ahead = path.index(STANDARD_LIBRARY) if STANDARD_LIBRARY in path else len(path)
    kept = [each for each in path[:ahead] if each not in ("", working_folder)] + path[ahead:]
    return kept if PACKAGE_PARENT in kept else [*kept, PACKAGE_PARENT]


def elements(named: str) -> list[str]:
    """Return the folders that a value of PYTHONPATH names."""
    return [each for each in named.split(os.pathsep) if each]
