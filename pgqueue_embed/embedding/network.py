"""The interface of an opened model, be it opened by the library or by this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from pgqueue_embed.errors import ModelError

UNLIMITED_TOKENS = 1 << 30

# What a model is asked to read.
DOCUMENT = "document"
QUERY = "query"
_PROMPT_NAMES = {DOCUMENT: ("document", "passage", "corpus"), QUERY: ("query",)}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a model by name, and the name of the ``default`` one."""

    named: Mapping[str, str | None]
    default: str | None = None

    def own(self, task: str) -> str:
        """Return the prompt that a model's files name for a text of ``task``, "" for none.

        The library adds names with an empty prompt as placeholders: such a name keeps the default
        prompt away, but not the prompt of the next name.
        """
        found = [self.named[name] or "" for name in _PROMPT_NAMES[task] if name in self.named]
        if not found:
            return self.named.get(self.default or "") or ""
        return next(filter(None, found), "")

    def has_placeholder(self, task: str) -> bool:
        """Tell whether there is a name for a prompt of ``task`` that has none."""
        return any(name in self.named and not self.named[name] for name in _PROMPT_NAMES[task])

    def is_overlooked(self, task: str) -> bool:
        """Tell whether a version of the library sees its placeholder before the model's prompt."""
        first, *others = _PROMPT_NAMES[task]
        own = self.own(task)
        return bool(own) and not self.named.get(first) and own in map(self.named.get, others)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of a network that reads the texts of a task.

    ``name`` is that of the module that takes token ids: a *transformer*, or a *table* with a vector
    for each of them; ``kinds`` are the names of all modules that a text runs through, ``poolings``
    the ways in which the vectors of tokens become one. ``declared_tokens`` are how many the files
    say that it reads, special ones included; ``padding_id`` pads a batch, None where there is none;
    ``token_rows`` is how many token ids it has a vector for, None where it does not tell;
    ``tokenizer`` is None where there is none in Rust, ``private_tokenizer`` a copy of it that reads
    control tokens as text.
    """

    name: str
    kinds: tuple[str, ...]
    poolings: tuple[str, ...]
    is_transformer: bool
    is_table: bool
    tokenizer: Tokenizer | None
    private_tokenizer: Tokenizer | None
    padding_id: int | None
    declared_tokens: int
    token_rows: int | None


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What is fed to a network for one text: all features."""

    features: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        """The token ids, in order, without any padding."""
        ids, mask = self.features["input_ids"], self.features.get("attention_mask")
        if mask is not None and mask.shape == ids.shape:
            ids = ids[mask.bool()]
        return [int(each) for each in ids.flatten().tolist()]


class Network(Protocol):
    """An opened model, on the CPU in fp32 until it is moved.

    ``similarity`` is how its vectors are meant to be compared; of a vector the first
    ``truncate_dim`` dimensions count, all where it is None. ``is_stateless`` tells whether several
    threads may compute by it at once.
    """

    prompts: Prompts
    similarity: str
    truncate_dim: int | None
    is_stateless: bool

    def part(self, task: str) -> Part:
        """Return what reads texts of a task: the same object where it is the same part."""

    def feed(self, task: str, text: str, prompt: str | None = None) -> Fed:
        """Return what is fed for a text, cut to the model's limit; nothing is computed.

        Without ``prompt`` it is the model's own.
        """

    def features(self, task: str, texts: list[str], prompt: str) -> dict[str, Any]:
        """Return the features of texts in one batch."""

    def vectors(self, features: dict[str, Any], task: str) -> Any:
        """Start to compute features on their device; returns a tensor (n, dimensions)."""

    def convert(self, dtype: str) -> None:
        """Keep the weights in another format from now on, as torch calls it: float16, bfloat16."""

    def pack(self) -> None:
        """Multiply by oneDNN from now on; raises whatever torch does where it cannot."""

    def to(self, device: str) -> None:
        """Move the weights to a device."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network, and what the libraries had to say about it that a person should know.

    ``stray_weights`` are those of its files that it has no place for, but for a head's.
    """

    network: Network
    notes: tuple[str, ...] = ()
    stray_weights: tuple[str, ...] = ()


@contextmanager
def failing_clearly(what: str) -> Iterator[None]:
    """Raise ModelError, ``what`` and the reason in a line, for whatever a dozen libraries raise."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        first, *more = (line.strip() for line in str(error).strip().split("\n"))
        reason = f"{first} {more[0]}" if first.endswith(":") and more else first
        raise ModelError(f"{what}: {reason}") from error


def names_pooling(path: Path) -> bool:
    """Tell whether a model's files say how the vectors of its tokens become one."""
    return (path / "modules.json").is_file()
