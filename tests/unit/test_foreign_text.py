"""Text of others is shown, logged and kept without doing anything, in linear time."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pgqueue_embed
from pgqueue_embed.adopt import locate
from pgqueue_embed.bench import texts
from pgqueue_embed.chunking import encoding
from pgqueue_embed.claim.embed import describe_error
from pgqueue_embed.configuration import database, keys
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.names import split_columns
from pgqueue_embed.embedding import weights
from pgqueue_embed.embedding.devices import is_out_of_memory
from pgqueue_embed.errors import PgembedError, UsageError, as_arguments
from pgqueue_embed.local_server import config, serverlog
from pgqueue_embed.log import mask
from pgqueue_embed.pipeline.template import parse_template
from pgqueue_embed.untrusted import plain_json
from pgqueue_embed.untrusted.foreign_text import (
    MOST_CHARACTERS,
    REPLACEMENT,
    capped,
    escaped,
    printable,
    printable_lines,
)

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eLOST\u200b\ud800\r\x00\x7f"

# Of the format characters, these have a shape of their own.
SEEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}


def is_hostile(character: str) -> bool:
    category = unicodedata.category(character)
    if category == "Cf":
        return ord(character) not in SEEN and not 0x13430 <= ord(character) <= 0x1345F
    return category in ("Cc", "Cs", "Zl", "Zp")


def test_what_nobody_can_see_is_replaced_and_nothing_else() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        shown = printable(f"a{character}b")
        if character.isspace():
            assert shown in ("a b", f"a{REPLACEMENT}b"), hex(code)
        elif is_hostile(character):
            assert shown == f"a{REPLACEMENT}b", hex(code)
        elif unicodedata.category(character) != "Cn":
            assert shown == f"a{character}b", hex(code)


@given(st.text())
@example("\U000e0041")  # of two surrogates in JSON
def test_lines_keep_their_layout_and_json_its_meaning(text: str) -> None:
    lines = printable_lines(f"  {text}\n\tb")
    assert lines.startswith("  ")
    assert lines.endswith("\n\tb")
    assert len(lines) == len(text) + 5
    assert not any(is_hostile(each) for each in lines if each not in "\n\t")
    written = escaped(json.dumps({"a": text}, ensure_ascii=False, indent=2))
    assert json.loads(written) == {"a": text}
    assert not any(is_hostile(each) for each in written if each != "\n")


def test_what_is_long_is_cut_and_says_how_long_it_is() -> None:
    assert capped("abc", 3) == "abc"
    assert capped("abcd", 3) == "abc… (4 characters)"
    assert len(first_line(ValueError("x" * 10**6))) < MOST_CHARACTERS + 100
    assert len(describe_error(ValueError("x" * 10**6))) < MOST_CHARACTERS + 100
    assert len(mask("x" * 10**6)) < 30_000


@pytest.mark.parametrize("error", [PgembedError, UsageError])
def test_error_is_one_printable_line(error: type[PgembedError]) -> None:
    text = str(error(f"table {HOSTILE} is\ngone {'x' * 10**6}"))
    assert text.isprintable()
    assert len(text) < 10_000


def test_password_in_a_text_that_is_cut_is_not_shown() -> None:
    text = "x" * 19_980 + " postgresql://me:s3cr3t" + "y" * 100_000 + "@db"
    assert "s3c" not in mask(text)
    assert "://me:***" in mask(text)


def _is_url_refused(text: str) -> bool:
    return database._holds_password(text)


def _refused(call: Callable[[str], object]) -> Callable[[str], None]:
    def run(text: str) -> None:
        try:
            call(text)
        except PgembedError:
            return

    return run


READERS: dict[str, Callable[[str], object]] = {
    "log.mask": mask,
    "connect.first_line": lambda text: first_line(ValueError(text)),
    "embed.describe": lambda text: describe_error(ValueError(text)),
    "foreign_text.printable": printable,
    "foreign_text.printable_lines": printable_lines,
    "foreign_text.escaped": escaped,
    "template": _refused(lambda text: parse_template(text, "--template")),
    "identifiers": _refused(split_columns),
    "configuration password": _is_url_refused,
    "configuration key": lambda text: keys._PASSWORD.search(text),
    "configuration option": lambda text: keys._OPTION.sub("", text),
    "devices": lambda text: is_out_of_memory(RuntimeError(text)),
    "server log": serverlog.last_fault,
    "server port": config.configured_port,
    "adopt": lambda text: locate.without_marks(text),
    "chunking": lambda text: encoding._SEAM.search(text),
    "options in messages": as_arguments,
    "sentences": lambda text: texts._SENTENCE.split(text),
    "names of weights": lambda text: weights._OF_A_HEAD.search(text),
    "numbers of JSON": lambda text: plain_json.MARKED.sub("", text),
}

SEEDS = (
    *("://a:", "://", "a:b@", "password=", "password ", "password='\\", "x", " ", "\n", "\\"),
    *("${", "$a", "$", "$$", '"', "',", '"a".', "--a-", "--a", "-", "FATAL: ", "ERROR:  "),
    *("port = '1", "[CLS] ", " [SEP]", "failed:", "\x1b", "\u202e", "out of memor", "，", "中"),
    f'"{plain_json.MARK}',
)
SMALL, LARGE = 10_000, 80_000


def seconds(reader: Callable[[str], object], text: str) -> float:
    began = time.process_time()
    reader(text)
    return time.process_time() - began


def grows_too_fast(reader: Callable[[str], object], seed: str) -> bool:
    """Eight times the text takes eight times as long, and sixty-four times by a square."""
    small = seconds(reader, seed * (SMALL // len(seed)))
    large = seconds(reader, seed * (LARGE // len(seed)))
    return large > max(24 * small, 0.05)


@pytest.mark.parametrize("name", READERS)
def test_work_grows_with_the_length_of_a_text_and_not_with_its_square(name: str) -> None:
    reader = READERS[name]
    for seed in SEEDS:
        for prefix in ("", "a://b:"):
            # Something else may have taken the time once.
            assert not all(grows_too_fast(reader, prefix + seed) for _ in range(3)), (name, seed)


def test_every_regular_expression_is_looked_at() -> None:
    folder = Path(pgqueue_embed.__file__).parent
    with_one = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if "re.compile(" in path.read_text(encoding="utf-8")
        or "re.search(" in path.read_text(encoding="utf-8")
        or "re.fullmatch(" in path.read_text(encoding="utf-8")
    }
    assert with_one == {
        "bench/texts.py",
        "chunking/encoding.py",
        "configuration/database.py",
        "configuration/keys.py",
        "db/names.py",
        "embedding/devices.py",
        "embedding/families.py",
        "embedding/quiet.py",
        "embedding/weights.py",
        "errors.py",
        "local_server/config.py",
        "local_server/serverlog.py",
        "log/masking.py",
        "pipeline/template.py",
        "source/condition_names.py",
        "untrusted/foreign_text.py",
        "untrusted/plain_json.py",
    }
