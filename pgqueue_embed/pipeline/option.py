"""Options: each is said once, beside the field that holds it, and read from there by all others.

A setting is ``field: Annotated[type, Option(…)] = default``. The command line, the configuration
file and its schema, `alter`, the checks and the tables of the documentation come from these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from numbers import Integral, Number, Real
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pgqueue_embed.errors import UsageError

# What a value of a type is called.
CALLED: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
}


# So much of a value is repeated in a message.
MOST_SHOWN = 100


def shown(value: object) -> str:
    """Return a value as a message has it: a number of thousands of digits has no decimal form."""
    try:
        text = f"{value:g}" if isinstance(value, float) else repr(value)
    except ValueError:
        return "of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def check_type(flag: str, value: Any, type_: type) -> None:
    """Raise UsageError for a value of another type, as a program may give, and no command line."""
    accepted = {int: Integral, float: Real}.get(type_, type_)
    if not isinstance(value, accepted) or (type_ is not bool and isinstance(value, bool)):
        raise UsageError(f"{flag} {shown(value)}: give {CALLED[type_]}")


def check_within(
    flag: str, value: Any, type_: type, least: float, most: float, wanted: str
) -> None:
    """Raise UsageError for all but numbers from `least` to `most`, which are `wanted`."""
    check_type(flag, value, type_)
    # NaN is in none.
    if not least <= value <= most:
        raise UsageError(f"{flag} {shown(value)}: {wanted}")


# Of what PostgreSQL counts by.
MOST_COUNT = 2**63 - 1


def check_count(flag: str, value: Any) -> None:
    """Raise UsageError unless `value` is a number of rows to ask for, 1 or more."""
    check_within(flag, value, int, 1, math.inf, "give at least 1")
    at_most = f"give at most {MOST_COUNT:,}, or leave it out"
    check_within(flag, value, int, 1, MOST_COUNT, at_most)


def check_names(flag: str, names: object) -> None:
    """Raise UsageError for what are no names of columns, in a list or tuple."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(each, str) for each in names):
        raise UsageError(f"{flag} {shown(names)}: give a list of names, each a text")
    if "" in names:
        raise UsageError(f"{flag} {shown(list(names))}: one of the names is empty")


def check_where(where: object) -> None:
    """Raise UsageError for a condition that is no text, or an empty one; None is not given."""
    if where is None:
        return
    check_type("--where", where, str)
    if not str(where).strip():
        raise UsageError("--where is empty; leave it out, or give a condition")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting that a person may give.

    `name` is what options (``--chunk-size``) and keys of files (``chunk_size``) call it, `field`
    the attribute that holds it; `type` is str, int, float, bool, list (of names) or dict (names by
    meaning), and `default` what holds if it is not given; without any, `usual` says what happens.
    Numbers are from `minimum` to `maximum`, in `unit` (singular). `alter` is the help of `pgembed
    alter`, without which it stays for ever; it takes effect at once unless it `alters_vectors`, or
    belongs `with_vectors` that others alter in the same breath. An empty value takes it away if it
    `may_go`. `more` is a page of the documentation; `behind` names the option that it comes behind,
    see `in_order`.
    """

    help: str
    panel: str
    name: str = ""
    field: str = ""
    type: type = str
    default: Any = None
    usual: str | None = None
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    rule: Callable[[Option, Any], None] | None = None
    metavar: str | None = None
    short: str | None = None
    alter: str | None = None
    alters_vectors: bool = True
    with_vectors: bool = False
    may_go: bool = False
    more: str | None = None
    behind: str | None = None

    @property
    def flag(self) -> str:
        """What the command line calls it: ``--chunk-size``."""
        return f"--{self.name.replace('_', '-')}"

    def said(self, value: object) -> str:
        """Return how the command line says a value that is true or false: ``--no-text``."""
        return self.flag if value else f"--no-{self.flag.removeprefix('--')}"

    @property
    def nothing(self) -> Any:
        """What the field holds when an empty value has taken it away."""
        return () if self.type is list else None

    def check(self, value: Any) -> None:
        """Raise UsageError for a value that cannot be, whatever the other options say.

        None is not given, where that is the default.
        """
        if value is None and self.default is None:
            return
        if self.choices and value not in self.choices:
            raise UsageError(f"{self.flag} {value}: give {' or '.join(self.choices)}")
        if self._is_out_of_range(value):
            raise UsageError(f"{self.flag} {shown(value)}: give {self._range()}")
        self._check_type(value)
        if self.rule is not None:
            self.rule(self, value)

    def _check_type(self, value: Any) -> None:
        is_object = not isinstance(value, (Number, bytes, list, dict))
        # Tables are objects by now.
        if self.type in CALLED and not (self.type is str and is_object):
            check_type(self.flag, value, self.type)

    def _is_out_of_range(self, value: Any) -> bool:
        if self.minimum is None or not isinstance(value, (int, float)):
            return False
        # NaN is in none.
        return not (self.minimum <= value and (self.maximum is None or value <= self.maximum))

    def _range(self) -> str:
        unit = self.unit
        if self.maximum is None:
            least = f"at least {self.minimum:g}"
            return f"{least} {unit}{'' if self.minimum == 1 else 's'}" if unit else least
        span = f"{self.minimum:g} to {self.maximum:,.0f}"
        return f"{span} {unit}s" if unit else f"a number from {span}"


@cache
def options_of(settings: Any) -> tuple[Option, ...]:
    """Return the options that a dataclass has as fields, in their order."""
    hints = get_type_hints(settings, include_extras=True)
    found = []
    for each in fields(settings):
        if get_origin(hints[each.name]) is Annotated:
            annotated, option = get_args(hints[each.name])
            default = None if each.default is MISSING else each.default
            found.append(_complete(option, each.name, annotated, default))
    return tuple(found)


def _complete(option: Option, field: str, annotated: Any, default: Any) -> Option:
    type_ = _type(annotated)
    return replace(
        option,
        name=option.name or field,
        field=field,
        type=type_ if option.type is str else option.type,
        default=None if type_ is list else default,
    )


def _type(annotated: Any) -> type:
    """Return how the command line and a file have a field's type; what is neither is text there."""
    if get_origin(annotated) is tuple:
        return list
    (type_,) = {*(get_args(annotated) or (annotated,))} - {NoneType}
    return type_ if type_ in (bool, int, float) else str


def in_order(settings: Any, beside: Any) -> Iterator[Option]:
    """Yield the options of two dataclasses: each of `beside` comes `behind` one of `settings`."""
    for option in options_of(settings):
        yield option
        yield from (each for each in options_of(beside) if each.behind == option.name)


def check_options(settings: Any) -> None:
    """Raise UsageError for a value of `settings`, a dataclass, that its option cannot have."""
    # mypy takes the hash of an instance for that of its type.
    for option in options_of(type(settings)):  # type: ignore[arg-type]
        option.check(getattr(settings, option.field))
