"""Lets a process keep the memory of one batch for the next one, where glibc would give it back.

glibc returns large blocks to the kernel as soon as they are free, which has to clear every page of
them again for the next batch: some 500 a chunk of 128 tokens.
"""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's own numbers of its parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
# 32 MiB is the most that glibc takes for the last one; up to half a gigabyte stays in the process.
_SETTINGS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 512 << 20, _TOP_PAD: 64 << 20}
_OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES")


def keep_heap() -> bool:
    """Keep freed memory from now on; returns whether that was done.

    It is not without glibc, nor where the user's environment says something about its heap.
    """
    if platform.libc_ver()[0] != "glibc" or any(
        each.startswith(_OF_THE_USER) for each in os.environ
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS.items())
