"""Checks that a tokenizer, its private copy and the weights of a model belong together."""

from __future__ import annotations

from tokenizers import Encoding, Tokenizer

from pgqueue_embed.errors import ModelError

_WORD = "pump"


def control_tokens_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the control tokens that a text may spell."""
    added = tokenizer.get_added_tokens_decoder().values()
    return tuple(token.content for token in added if token.special)


def check_copy(own: Tokenizer, copy: Tokenizer, name: str) -> None:
    """Raise ModelError unless the copy has the ids of the original for every added token."""
    added = own.get_added_tokens_decoder()
    plain = [token.content for token in added.values() if not token.special]
    texts = [*plain, *(f"{_WORD} {content} {_WORD}" for content in plain)]
    pairs = zip(
        own.encode_batch(texts, add_special_tokens=False),
        copy.encode_batch(texts, add_special_tokens=False),
        strict=True,
    )
    unlike = [text for text, (a, b) in zip(texts, pairs, strict=True) if _unpadded(a) != b.ids]
    if unlike or own.get_vocab_size() != copy.get_vocab_size():
        raise ModelError(f"the tokenizer of model {name} cannot be copied: {unlike[:1]}")


def check_rows(tokenizer: Tokenizer, rows: int | None, name: str) -> None:
    """Raise ModelError for a token that a text may hold and that the model has no vector for."""
    special = set(control_tokens_of(tokenizer))
    known = tokenizer.get_vocab().items()
    beyond = [token for token, number in known if rows is not None and number >= rows]
    unread = sorted(token for token in beyond if token not in special)
    if unread:
        raise ModelError(
            f"model {name} has vectors for {rows:,} tokens, and its tokenizer has more:"
            f" {unread[0]!r} and {len(unread) - 1:,} others have none; tokenizer and weights are"
            " not of one model"
        )


def _unpadded(encoding: Encoding) -> list[int]:
    return [each for each, mask in zip(encoding.ids, encoding.attention_mask, strict=True) if mask]
