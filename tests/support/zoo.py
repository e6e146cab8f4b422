"""Tiny models of real architectures with real kinds of tokenizers: untrained, made in a second.

Their weights are spread widely, so that every token, position and layer shows in the vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

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
from tests.support.libraries import (
    Dense,
    Normalize,
    Pooling,
    Router,
    SentenceTransformer,
    StaticEmbedding,
    Transformer,
    torch,
    transformers,
)

WIDTH = 32
LIMIT = 96
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


@dataclass(frozen=True, kw_only=True)
class Animal:
    """One model of the zoo: an architecture, a tokenizer, what follows, and what its files say."""

    architecture: str
    tokenizer: str
    specials: Specials
    config: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    side: str = "right"
    model_max_length: int | None = LIMIT
    document_prompt: str | None = None
    query_prompt: str | None = None
    after: tuple[str, ...] = ()
    keep_shards_below: str | None = None
    dtype: str = "float32"

    def save(self, folder: Path) -> Path:
        """Write the model into a folder; returns it."""
        network = SentenceTransformer(
            modules=[*self.modules(folder.with_name(folder.name + "-base")), *self._more()],
            device="cpu",
            prompts=self.prompts,
        )
        network.save_pretrained(str(folder), create_model_card=False)
        return folder

    @property
    def prompts(self) -> dict[str, str]:
        wanted = {"document": self.document_prompt, "query": self.query_prompt}
        return {name: text for name, text in wanted.items() if text is not None}

    def modules(self, base: Path) -> list[Any]:
        """Write the bare transformer into ``base``, and return it with its pooling."""
        self.save_base(base)
        first = Transformer(str(base), **self._transformer_arguments())
        return [first, Pooling(first.get_embedding_dimension(), pooling_mode=self.pooling)]

    def _transformer_arguments(self) -> dict[str, Any]:
        return {"model_kwargs": {"dtype": getattr(torch, self.dtype)}}

    def save_base(self, base: Path) -> None:
        """Write the bare transformer and its tokenizer."""
        own = tokenizer(self.tokenizer, self.specials)
        length = (
            {} if self.model_max_length is None else {"model_max_length": self.model_max_length}
        )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=own, padding_side=self.side, **length, **self.specials.names
        ).save_pretrained(base)
        torch.manual_seed(7)
        network = _network(self.architecture, own, self.specials, self.config)
        spread(network)
        shards = (
            {} if self.keep_shards_below is None else {"max_shard_size": self.keep_shards_below}
        )
        network.to(getattr(torch, self.dtype)).save_pretrained(base, **shards)

    def _more(self) -> list[Any]:
        torch.manual_seed(8)
        made = {"dense": lambda: Dense(WIDTH, 16), "normalize": Normalize}
        return [made[each]() for each in self.after]


def spread(network: torch.nn.Module) -> None:
    """Give every weight matrix values that tell its inputs apart; biases and norms stay."""
    for name, weights in network.named_parameters():
        if weights.ndim > 1:
            scale = 1.0 if "embed" in name or "wte" in name else 0.25
            torch.nn.init.normal_(weights, std=scale)


def _network(
    architecture: str, own: Tokenizer, specials: Specials, config: dict[str, Any]
) -> torch.nn.Module:
    def number(name: str) -> int | None:
        content = specials.names.get(name)
        return None if content is None else own.token_to_id(content)

    sizes = _SIZES[architecture] | {"vocab_size": own.get_vocab_size()}
    ids = {
        "pad_token_id": number("pad_token"),
        "bos_token_id": number("bos_token") or number("cls_token"),
        "eos_token_id": number("eos_token") or number("sep_token"),
    }
    made = getattr(transformers, f"{architecture}Config")(**(sizes | ids | config))
    class_name = _CLASSES.get(architecture, f"{architecture}Model")
    return getattr(transformers, class_name)(made)


_CLASSES = {"T5": "T5EncoderModel", "Gemma3Text": "Gemma3TextModel"}
_ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "head_dim": 16}
_SIZES: dict[str, dict[str, Any]] = {
    "Bert": _ENCODER,
    "DistilBert": {
        "dim": WIDTH,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 128,
    },
    "MPNet": _ENCODER | {"max_position_embeddings": 130},
    "Roberta": _ENCODER | {"max_position_embeddings": 130},
    "XLMRoberta": _ENCODER | {"max_position_embeddings": 130},
    "DebertaV2": _ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "Albert": _ENCODER | {"embedding_size": 16},
    "ModernBert": _ENCODER | {"global_attn_every_n_layers": 2, "local_attention": 16},
    "NomicBert": _ENCODER,
    "Longformer": _ENCODER | {"max_position_embeddings": 130, "attention_window": [8, 8]},
    "Mistral": _DECODER,
    "Qwen3": _DECODER,
    "Gemma3Text": _DECODER | {"use_bidirectional_attention": True, "sliding_window": 16},
    "GPTNeoX": _ENCODER,
    "Bloom": {"hidden_size": WIDTH, "n_layer": 2, "n_head": 2},
    "GPT2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "T5": {"d_model": WIDTH, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
}


def static_model(folder: Path, kind: str = "wordpiece", specials: Specials = BERT) -> Path:
    """Write a table of vectors, averaged: no transformer."""
    torch.manual_seed(9)
    own = tokenizer(kind, specials)
    module = StaticEmbedding(own, embedding_weights=torch.randn(own.get_vocab_size(), WIDTH))
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


def router_model(folder: Path, *, query: list[Any], document: list[Any]) -> Path:
    """Write a model with one network for queries and another for documents."""
    both = Router.for_query_document(query_modules=query, document_modules=document)
    SentenceTransformer(modules=[both, Normalize()], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


ZOO: dict[str, Animal] = {
    "bert-mean": Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT),
    "bert-cls-prompts": Animal(
        architecture="Bert",
        tokenizer="wordpiece",
        specials=BERT,
        pooling="cls",
        document_prompt="passage: ",
        query_prompt="query: ",
    ),
    "bert-max-sharded": Animal(
        architecture="Bert",
        tokenizer="wordpiece",
        specials=BERT,
        pooling="max",
        keep_shards_below="20KB",
    ),
    "bert-weighted-half": Animal(
        architecture="Bert",
        tokenizer="wordpiece",
        specials=BERT,
        pooling="weightedmean",
        dtype="float16",
    ),
    "bert-half-dense": Animal(
        architecture="Bert",
        tokenizer="wordpiece",
        specials=BERT,
        after=("normalize", "dense"),
        dtype="float16",
    ),
    "distilbert-dense": Animal(
        architecture="DistilBert",
        tokenizer="wordpiece",
        specials=BERT,
        after=("dense", "normalize"),
    ),
    "mpnet": Animal(architecture="MPNet", tokenizer="wordpiece", specials=BERT),
    "roberta": Animal(
        architecture="Roberta", tokenizer="byte-bpe", specials=ROBERTA, model_max_length=None
    ),
    "roberta-joining-prompt": Animal(
        architecture="Roberta",
        tokenizer="byte-bpe",
        specials=ROBERTA,
        document_prompt="document:",
        query_prompt="query:",
    ),
    "xlm-r-split": Animal(
        architecture="XLMRoberta",
        tokenizer="split metaspace",
        specials=ROBERTA,
        document_prompt="passage: ",
        query_prompt="query: ",
        after=("normalize",),
    ),
    "xlm-r-metaspace": Animal(
        architecture="XLMRoberta", tokenizer="metaspace", specials=ROBERTA, model_max_length=None
    ),
    "xlm-r-metaspace-prompt": Animal(
        architecture="XLMRoberta",
        tokenizer="metaspace",
        specials=ROBERTA,
        document_prompt="passage: ",
        query_prompt="query: ",
    ),
    "xlm-r-collapsing": Animal(
        architecture="XLMRoberta", tokenizer="collapsing metaspace", specials=ROBERTA
    ),
    "t5-dense": Animal(
        architecture="T5", tokenizer="metaspace", specials=T5, after=("dense", "normalize")
    ),
    "deberta": Animal(architecture="DebertaV2", tokenizer="metaspace", specials=BERT),
    "albert": Animal(architecture="Albert", tokenizer="split metaspace", specials=BERT),
    "modernbert": Animal(
        architecture="ModernBert", tokenizer="byte-bpe", specials=BERT, pooling="cls"
    ),
    "nomic": Animal(
        architecture="NomicBert",
        tokenizer="wordpiece",
        specials=BERT,
        document_prompt="search_document: ",
        query_prompt="search_query: ",
    ),
    "longformer": Animal(architecture="Longformer", tokenizer="byte-bpe", specials=ROBERTA),
    "mistral": Animal(
        architecture="Mistral",
        tokenizer="metaspace",
        specials=ROBERTA,
        pooling="lasttoken",
        side="left",
    ),
    "qwen3": Animal(
        architecture="Qwen3",
        tokenizer="byte-bpe, specials last",
        specials=QWEN,
        pooling="lasttoken",
        side="left",
        query_prompt="Instruct: retrieve relevant passages\nQuery:",
        after=("normalize",),
        dtype="bfloat16",
    ),
    "gemma3": Animal(
        architecture="Gemma3Text",
        tokenizer="gemma bpe",
        specials=GEMMA,
        document_prompt="title: none | text: ",
        query_prompt="task: search result | query: ",
        after=("dense", "normalize"),
    ),
    "gpt-neox": Animal(
        architecture="GPTNeoX", tokenizer="byte-bpe", specials=QWEN, pooling="weightedmean"
    ),
    "bloom": Animal(architecture="Bloom", tokenizer="byte-bpe", specials=ROBERTA),
    "gpt2": Animal(architecture="GPT2", tokenizer="byte-bpe", specials=QWEN, pooling="lasttoken"),
}
