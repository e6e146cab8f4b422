"""Tiny models of real architectures with real kinds of tokenizers: untrained, made in a second.

Their weights are spread widely, so that every token, position and layer shows in the vector.
"""

from __future__ import annotations

import atexit
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from tokenizers import Tokenizer

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
from tests.support.zoo_tokenizers import BERT, GEMMA, QWEN, ROBERTA, T5, Specials, tokenizer

WIDTH = 32
LIMIT = 96


@dataclass(frozen=True, kw_only=True)
class Animal:
    """One model of the zoo: an architecture, a tokenizer, what follows, and what its files say."""

    architecture: str
    tokenizer: str
    specials: Specials = field(hash=False)
    config: dict[str, Any] = field(default_factory=dict, hash=False)
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
        return Path(copytree(_saved(self), folder, dirs_exist_ok=True))

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


@cache
def _saved(animal: Animal) -> Path:
    """Make a model, once in a process; returns its folder, which is to stay as it is."""
    folder = Path(mkdtemp(dir=_folder()))
    network = SentenceTransformer(
        modules=[*animal.modules(folder / "base"), *animal._more()],
        device="cpu",
        prompts=animal.prompts,
    )
    network.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


@cache
def _folder() -> str:
    """Return where models are kept until the process ends."""
    folder = TemporaryDirectory(prefix="zoo-")
    atexit.register(folder.cleanup)
    return folder.name


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
