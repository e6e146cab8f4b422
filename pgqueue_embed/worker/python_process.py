"""Starting a module of ours in a Python process of its own, which searches no working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from pgqueue_embed.untrusted.search_path import PACKAGE_PARENT, VARIABLE, elements

# `-m` without what it does to the search path first; `-P` would do, if Python 3.10 had it.
START = """
import sys
parent, module = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:] = [each for each in sys.path if each]
parent in sys.path or sys.path.append(parent)
import runpy
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

# What a Python was started with that narrows its search path holds for those that it starts.
NARROWING = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s"}


def start_python(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] = os.environ,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Run `module` as `python -m` would, but from the working folder import nothing.

    `options` are those of Popen.
    """
    flags = [flag for name, flag in NARROWING.items() if getattr(sys.flags, name)]
    command = [sys.executable, *flags, "-c", START, PACKAGE_PARENT, module, *arguments]
    return subprocess.Popen(command, env=_tidy(environment), **options)


def _tidy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the empty elements of PYTHONPATH."""
    if VARIABLE not in environment:
        return dict(environment)
    return {**environment, VARIABLE: os.pathsep.join(elements(environment[VARIABLE]))}
