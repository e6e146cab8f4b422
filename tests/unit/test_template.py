"""Templates and lists of columns: what they mean, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_embed.db.names import join_columns, split_columns
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.template import Field, TemplatePart, parse_template, split_at_chunk


def parse(text: str) -> tuple[TemplatePart, ...]:
    return parse_template(text, "--template")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("$title", (Field("title"),)),
        ("$title: $text", (Field("title"), ": ", Field("text"))),
        ("$a$b", (Field("a"), Field("b"))),
        ("costs $$5 $a", ("costs $5 ", Field("a"))),
        ("$$$a", ("$", Field("a"))),
        ('${any "name", even}\'s', (Field('any "name", even'), "'s")),
        ("$标题。$a_1x", (Field("标题"), "。", Field("a_1x"))),
        (r"$a\n$b\t\\n\x", (Field("a"), "\n", Field("b"), "\t\\n\\x")),
        ("$a\n100 %s {x}", (Field("a"), "\n100 %s {x}")),
    ],
)
def test_template_is_split_into_texts_and_fields(
    text: str, parts: tuple[TemplatePart, ...]
) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no column"),
        ("no field", "names no column"),
        ("$$", "names no column"),
        ("$a costs $5", r"the \$ at character 10 names no column; .* \$\$ for a dollar"),
        ("ends in $", "at character 9"),
        ("${}", "empty"),
        ("${open", "at character 1"),
        ("${" + "x" * 64 + "}", "longer than"),
        ("${50%}", "holds a %"),
    ],
)
def test_bad_template_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refusal:
        parse(text)
    assert "\n" not in str(refusal.value)


def test_chunk_template_is_split_at_the_chunk() -> None:
    before, after = split_at_chunk(parse(r"$title\n$chunk ($id)"))
    assert before == (Field("title"), "\n")
    assert after == (" (", Field("id"), ")")


@pytest.mark.parametrize("text", ["$title", "$chunk", "$chunk $title $chunk", "x $chunk"])
def test_chunk_template_needs_one_chunk_and_a_column(text: str) -> None:
    with pytest.raises(UsageError, match=r"write \$chunk once, and at least one column"):
        split_at_chunk(parse(text))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b c ", ("a", "b c")),
        ('"a,b", "say ""x"""', ("a,b", 'say "x"')),
        ("键,b.c", ("键", "b.c")),
    ],
)
def test_list_of_columns_is_split_at_its_commas(text: str, names: tuple[str, ...]) -> None:
    assert split_columns(text) == names


@pytest.mark.parametrize("text", ["", "a,", ",a", 'a"b', '"a', '"a"b'])
def test_what_is_no_list_of_columns_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a list of columns; write a,b"):
        split_columns(text)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_any_columns_survive_being_written_as_a_list(names: list[str]) -> None:
    assert split_columns(join_columns(names)) == tuple(names)
