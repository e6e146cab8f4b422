"""Files that are replaced as a whole, or left as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pgqueue_embed.whole_file import replacing


def test_reader_sees_the_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file, mode=0o600) as new:
        new.write(b"ne")
        new.flush()
        (partial,) = set(tmp_path.iterdir()) - {file}
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        assert file.read_text() == "old"
        new.write(b"w")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_or_is_interrupted_leaves_all_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    for error in (OSError("disk full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_within(file, error)
    with pytest.raises(LookupError), replacing(file, user="nobody of this name") as new:
        new.write(b"new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def fail_within(file: Path, error: BaseException) -> None:
    with replacing(file) as new:
        new.write(b"half")
        raise error


def test_two_at_a_time_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with replacing(file) as first, replacing(file) as second:
        first.write(b"first")
        second.write(b"second")
    assert file.read_text() == "first", "the last to end"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
