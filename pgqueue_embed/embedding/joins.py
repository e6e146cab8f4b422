"""Tells from a text's beginning if a prompt before it is tokenised apart.

Tokens never cross the words into which a tokenizer first parts its input, so that prompt and text
are apart where a text's own words are the last ones of the whole.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer

_LETTERS = "aZq07éñßжЖωαאعहกあア中가"
_OTHERS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«“‘’”…–°©±×€§¿、。（「♥🙂"
_EDGES = "\u200b\u200d\u00ad\ufeff\u0301\u00a0\u3000"


def joining_samples() -> list[str]:
    """Return short texts that begin and end with characters of all kinds."""
    beginning = [f"{each}pump in" for each in _LETTERS + _OTHERS]
    return beginning + [f"in pump{each}" for each in _LETTERS + _OTHERS]


def clean_joins(tokenizer: Tokenizer, prompt: str) -> tuple[bool, Callable[[str], bool]]:
    """Return whether any text is apart from ``prompt``, and what tells it of a single text."""
    if not prompt:
        return True, bool
    letters = all(_is_apart(tokenizer, prompt, f"{each}pump") for each in _LETTERS)
    others = all(_is_apart(tokenizer, prompt, f"{each}pump") for each in _OTHERS + _EDGES)
    return letters and others, lambda text: letters and text[:1].isalnum()


def _is_apart(tokenizer: Tokenizer, prompt: str, text: str) -> bool:
    head, own = _parted(tokenizer, prompt, text)
    usual, _ = _parted(tokenizer, prompt, "pump")
    return own == _words(tokenizer, text) and head == usual


def _parted(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[list[str], list[str]]:
    """Return the words of prompt and text, before and from where those of the text may begin."""
    words, count = _words(tokenizer, prompt + text), len(_words(tokenizer, text))
    return words[: len(words) - count], words[len(words) - count :]


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
