"""Tiny models that need no library: of all kinds, with all tokenizers, limits and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.libraries import transformers
from tests.support.models import edit
from tests.support.zoo import ZOO, Animal
from tests.support.zoo_tokenizers import BERT, ROBERTA, Specials, tokenizer

# The others have an architecture, a pooling or shards of weights that the library reads.
LIGHT_ANIMALS = {
    "bert-mean",
    "bert-cls-prompts",
    "bert-half-dense",
    "distilbert-dense",
    "mpnet",
    "roberta",
    "roberta-joining-prompt",
    "xlm-r-split",
    "xlm-r-metaspace",
    "xlm-r-metaspace-prompt",
    "xlm-r-collapsing",
}


# Tokenizers that transformers makes anew ------------------------------------------------------


@dataclass(frozen=True)
class MadeAnew:
    """A class of tokenizer, with a trained one to take the vocabulary from, and its settings."""

    architecture: str
    kind: str
    specials: Specials
    settings: dict[str, Any]

    def save(self, class_name: str, folder: Path) -> Path:
        animal = Animal(architecture=self.architecture, tokenizer=self.kind, specials=self.specials)
        animal.save(folder)
        state = json.loads(tokenizer(self.kind, self.specials).to_str())["model"]
        made = getattr(transformers, class_name)(
            **_vocabulary(state), **self.specials.names, **self.settings
        )
        made.save_pretrained(folder)
        edit(folder, "tokenizer_config.json", tokenizer_class=class_name, model_max_length=96)
        return folder


def _vocabulary(state: dict[str, Any]) -> dict[str, Any]:
    if "merges" in state:
        return {"vocab": state["vocab"], "merges": [tuple(each) for each in state["merges"]]}
    if isinstance(state["vocab"], list):
        return {"vocab": [tuple(each) for each in state["vocab"]]}
    return {"vocab": state["vocab"]}


CASED = {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": True}
ANEW = {
    "BertTokenizer": MadeAnew("Bert", "wordpiece", BERT, {}),
    "BertTokenizer, cased": MadeAnew("Bert", "wordpiece", BERT, CASED),
    "DistilBertTokenizer": MadeAnew("DistilBert", "wordpiece", BERT, {}),
    "MPNetTokenizer": MadeAnew("MPNet", "wordpiece", BERT, {}),
    "RobertaTokenizer": MadeAnew("Roberta", "byte-bpe", ROBERTA, {"add_prefix_space": True}),
    "XLMRobertaTokenizer": MadeAnew("XLMRoberta", "split metaspace", ROBERTA, {}),
}

# Settings that light models may have ----------------------------------------------------------

Make = Callable[[Path], Path]


def _edited(animal: str, file: str, **settings: Any) -> Make:
    return lambda folder: edit(ZOO[animal].save(folder), file, **settings)


_READING = "sentence_bert_config.json"
_ABOUT = "config_sentence_transformers.json"
_TOKENIZER = "tokenizer_config.json"
_FLAGS = {"pooling_mode": None, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
EDITED: dict[str, Make] = {
    "shorter": _edited("bert-mean", _READING, max_seq_length=40),
    "longer than its positions": _edited("roberta", _READING, max_seq_length=200),
    "without a length": _edited("bert-mean", _TOKENIZER, model_max_length=None),
    "cut on the left": _edited("bert-mean", _TOKENIZER, truncation_side="left"),
    "similarity": _edited("distilbert-dense", _ABOUT, similarity_fn_name="dot"),
    "passages": _edited("bert-mean", _ABOUT, prompts={"passage": "p: ", "query": "q: "}),
    "without prompts": _edited("bert-mean", _ABOUT, prompts=None, default_prompt_name=None),
    "pooling by flags": _edited("bert-mean", "1_Pooling/config.json", **_FLAGS),
}


def _zoo(name: str) -> Make:
    return lambda folder: ZOO[name].save(folder)


def _anew(name: str) -> Make:
    return lambda folder: ANEW[name].save(name.partition(",")[0], folder)


LIGHT_MODELS: dict[str, Make] = {
    **{name: _zoo(name) for name in sorted(LIGHT_ANIMALS)},
    **{name: _anew(name) for name in ANEW},
    **EDITED,
}
