"""Chooses what reads texts for the chunker: the tokenizer, or what does as it does, and faster."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pgqueue_embed.chunking.nanotoken_reader import Agreed, NanotokenReader, is_installed
from pgqueue_embed.chunking.reading import Reader, TextReader
from pgqueue_embed.chunking.words import WordReader


def reader_of(tokenizer: Tokenizer) -> Reader:
    """Return what reads texts as ``tokenizer`` does, which must stay as it is."""
    if not reads_words(tokenizer):
        return TextReader(tokenizer)
    words = WordReader(tokenizer)
    return NanotokenReader(tokenizer, words) if is_installed() else words


def describe_reader(tokenizer: Tokenizer) -> str:
    """Return what reads much text; raises Disagreement if nanotoken is there and does not."""
    if not reads_words(tokenizer):
        return "the model's tokenizer, each as a whole"
    if not is_installed():
        return "the model's tokenizer, each word when it is new"
    Agreed(tokenizer, TextReader(tokenizer))
    return "nanotoken, which reads known texts as the model's tokenizer does"


def reads_words(tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer is of BERT's kind, and no token that was added takes part."""
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        isinstance(tokenizer.normalizer, BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.model, WordPiece)
        and tokenizer.truncation is None
        and tokenizer.padding is None
        and all(each.special and tokenizer.encode_special_tokens for each in added)
    )
