"""Tokenizers of the kinds that real models have, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from pgqueue_embed.chunking.chunker import _CANARIES

CORPUS = [
    "The infusion pump stopped (alarm 12), and nobody was hurt. passage: query: document: ",
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。 장치가 작동을 멈췄습니다. できません。",
    "Устройство перестало работать. Ça n'était pas prévu… naïve coöperate x²=4 :( :) :(( ",
    "note:(a) see:(b) item:(c) list:((d)) " * 4,
    "think end mask text user system instruction retrieve relevant passages title abstract",
]
# Tokens that a vocabulary adds without calling them special: a text may spell them, and means them.
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>", "|||EMAIL_ADDRESS|||")


@dataclass(frozen=True, kw_only=True)
class Specials:
    """The control tokens of a family; the ids of the first ones count from 0 in this order."""

    names: dict[str, str]
    template: str
    more: tuple[str, ...] = ()

    @property
    def contents(self) -> list[str]:
        return list(dict.fromkeys([*self.names.values(), *self.more]))


BERT = Specials(
    names={
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    template="[CLS] $A [SEP]",
)
ROBERTA = Specials(
    names={
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "cls_token": "<s>",
        "sep_token": "</s>",
    },
    template="<s> $A </s>",
)
T5 = Specials(
    names={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}, template="$A </s>"
)
QWEN = Specials(
    names={"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
    more=("<|im_start|>",),
    template="$A <|endoftext|>",
)
GEMMA = Specials(
    names={
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
    },
    template="<bos> $A <eos>",
)


def tokenizer(kind: str, specials: Specials) -> Tokenizer:
    """Train a tokenizer of a kind on the corpus; control tokens have the first ids."""
    made = _trained(kind, tuple(specials.contents))
    ids = [(content, made.token_to_id(content)) for content in specials.contents]
    used = [each for each in ids if each[0] in specials.template.split()]
    made.post_processor = processors.TemplateProcessing(
        single=specials.template, special_tokens=used
    )
    made.add_tokens([AddedToken(content, normalized=False) for content in PLAIN_ADDED])
    return made


@cache
def _trained_json(kind: str, specials: tuple[str, ...]) -> str:
    made = _KINDS[kind](list(specials))
    return str(made.to_str())


def _trained(kind: str, specials: tuple[str, ...]) -> Tokenizer:
    return Tokenizer.from_str(_trained_json(kind, specials))


def _wordpiece(specials: list[str]) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _byte_bpe(specials: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _byte_bpe_specials_last(specials: list[str]) -> Tokenizer:
    """As the vocabularies of Qwen: control tokens have no place in the model's own vocabulary."""
    made = _byte_bpe([])
    made.add_special_tokens([AddedToken(each, special=True) for each in specials])
    return made


def metaspace_of_whole_words() -> Tokenizer:
    """Return a tokenizer of Unigram and Metaspace alone that knows the words of a chunker's trial.

    As those of real vocabularies do: a slice at a word's end has the ids that it has in its text.
    """
    both = [*CORPUS, *_CANARIES]
    return _unigram(ROBERTA.contents, pre_tokenizers.Metaspace(), unknown="<unk>", corpus=both)


def _unigram(
    specials: list[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    unknown: str,
    corpus: list[str] = CORPUS,
) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=specials, unk_token=unknown, show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    return made


def _metaspace(specials: list[str]) -> Tokenizer:
    unknown = "<unk>" if "<unk>" in specials else "[UNK]"
    return _unigram(specials, pre_tokenizers.Metaspace(), unknown=unknown)


def _collapsing_metaspace(specials: list[str]) -> Tokenizer:
    """As converted SentencePiece models: what is read as white space is one space."""
    made = _metaspace(specials)
    collapse = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), collapse])
    return made


def _split_metaspace(specials: list[str]) -> Tokenizer:
    unknown = "<unk>" if "<unk>" in specials else "[UNK]"
    both = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return _unigram(specials, both, unknown=unknown)


def _gemma_bpe(specials: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*specials, *bytes_], show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = [
        each for each in state["added_tokens"] if not each["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(state))


_KINDS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "wordpiece": _wordpiece,
    "byte-bpe": _byte_bpe,
    "byte-bpe, specials last": _byte_bpe_specials_last,
    "metaspace": _metaspace,
    "collapsing metaspace": _collapsing_metaspace,
    "split metaspace": _split_metaspace,
    "gemma bpe": _gemma_bpe,
}
