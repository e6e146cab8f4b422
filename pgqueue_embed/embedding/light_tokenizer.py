"""The tokenizer of a model from its files alone, where the library would make the same one.

transformers makes the tokenizers of some classes anew, from a vocabulary and the settings of
``tokenizer_config.json``. One is taken here only where that gives what ``tokenizer.json`` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from pgqueue_embed.chunking.encoding import private_tokenizer
from pgqueue_embed.embedding.light_files import Settings, require, settings_of

# Of these, the library takes the file as it is.
_AS_IT_IS = {"TokenizersBackend", "PreTrainedTokenizerFast"}
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# They change no ids of one text that is not cut, or are looked at below.
_KNOWN = {f"{name}_token" for name in _NAMES} | {
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "backend",
    "clean_up_tokenization_spaces",
    "do_basic_tokenize",
    "do_lower_case",
    "errors",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "max_length",
    "model_max_length",
    "name_or_path",
    "never_split",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "special_tokens_map_file",
    "stride",
    "strip_accents",
    "tokenize_chinese_chars",
    "tokenizer_class",
    "tokenizer_file",
    "trim_offsets",
    "truncation_side",
    "truncation_strategy",
}
# Files that make other tokens, or another reading of a text.
_OTHERS = ("added_tokens.json", "chat_template.*", "*processor_config.json")


@dataclass(frozen=True, kw_only=True)
class LightTokenizer:
    """A tokenizer of a model's files.

    ``private`` reads control tokens as text; ``controls`` are those that are hidden in it,
    ``padding`` the one that pads a batch, and ``settings`` what ``tokenizer_config.json`` says.
    """

    path: Path
    private: Tokenizer
    controls: frozenset[str]
    padding: str | None
    settings: Settings

    def as_library(self, max_tokens: int) -> Tokenizer:
        """Return the tokenizer as the library reads a text with it, cut to ``max_tokens``."""
        made = Tokenizer.from_file(str(self.path))
        made.no_padding()
        side = self.settings.get("truncation_side", "right")
        made.enable_truncation(max_tokens, strategy="longest_first", direction=side)
        return made

    def has_control(self, text: str) -> bool:
        """Tell whether a text spells a control token."""
        return any(each in text for each in self.controls)


def open_tokenizer(path: Path) -> LightTokenizer:
    """Open the tokenizer of a model; raises NotUnderstood if the library might make another one."""
    require(not any(any(path.glob(pattern)) for pattern in _OTHERS), "files of its tokenizer")
    config = settings_of(path, "tokenizer_config.json")
    require(config.keys() <= _KNOWN, "a setting of its tokenizer")
    state = settings_of(path, "tokenizer.json")
    controls = {token["content"] for token in state["added_tokens"] if token["special"]}
    named = [config, _named_elsewhere(path)]
    _check_added(config, named, state, controls)
    require(state["post_processor"] and state["model"]["type"], "a tokenizer of an older form")
    ids = {token["content"]: token["id"] for token in state["added_tokens"]}
    # Taken before control tokens are hidden, which is done in the state itself.
    model = {name: value for name, value in state["model"].items() if name != "vocab"}
    tokenizer = private_tokenizer(state)
    names = _control_names(named)
    padding = names.get("pad_token")
    if config["tokenizer_class"] not in _AS_IT_IS:
        require(controls == ids.keys(), "an added token")
        first, last = _check_made_anew(config | names, tokenizer, model)
        require(tokenizer.encode("").ids == [ids[first], ids[last]], "its special tokens")
        padding = names.get("pad_token", _PADDING[_class_of(config)])
    return LightTokenizer(
        path=path / "tokenizer.json",
        private=tokenizer,
        controls=frozenset(controls),
        padding=padding,
        settings=config,
    )


def _named_elsewhere(path: Path) -> Settings:
    """Return the control tokens that older models name in a file of their own."""
    name = "special_tokens_map.json"
    return settings_of(path, name) if (path / name).is_file() else {}


def _control_names(named: Sequence[Settings]) -> Settings:
    """Return what the control tokens are called; raises NotUnderstood where two files differ."""
    found: Settings = {}
    for settings in named:
        for name in (f"{each}_token" for each in _NAMES if f"{each}_token" in settings):
            content = _content(settings[name])
            require(found.setdefault(name, content) == content, "a control token")
    return found


def _check_added(
    config: Settings, named: Sequence[Settings], state: Settings, controls: set[str]
) -> None:
    """Raise NotUnderstood where settings name a token that the file has not, or has otherwise."""
    known = {token["id"]: token for token in state["added_tokens"]}
    for number, token in config.get("added_tokens_decoder", {}).items():
        found = known.get(int(number), {})
        # How a control token is found in a text counts for none: such a text is not read here.
        names = ("content", "special") if token["special"] else found.keys() - {"id"}
        require(found and all(found[name] == token[name] for name in names), "an added token")
    contents = {_content(each[name]) for each in named for name in each if name.endswith("_token")}
    require(contents - {None} <= controls, "a control token")
    more = ("additional_special_tokens", "extra_special_tokens", "never_split")
    require(not any(each.get(name) for each in named for name in more), "more control tokens")


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token


def _check_made_anew(config: Settings, tokenizer: Tokenizer, model: Settings) -> tuple[str, str]:
    """Return the first and the last token around a text; raises NotUnderstood.

    Parts and defaults are those of the classes of transformers.
    """
    kind = _class_of(config)
    require(kind in _MADE_ANEW, "the class of its tokenizer")
    normalizer, words, settings, (first, last) = _MADE_ANEW[kind](config)
    require(_is_like(tokenizer.normalizer, normalizer), "its normalizer")
    require(_is_like(tokenizer.pre_tokenizer, words), "its words")
    require(all(model.get(name) in usual for name, usual in settings.items()), "its model")
    return first, last


def _class_of(config: Settings) -> str:
    return str(config["tokenizer_class"]).removesuffix("Fast")


def _is_like(part: Any, other: Any) -> bool:
    if part is None or other is None or other is ANY_PRECOMPILED:
        found = part is None or type(part).__name__ == "Precompiled"
        return found if other is ANY_PRECOMPILED else part is other
    return bool(json.loads(part.__getstate__()) == json.loads(other.__getstate__()))


def _named(config: Settings, name: str, default: str) -> str:
    return str(_content(config.get(f"{name}_token", default)))


# A character map of SentencePiece is taken over as it is.
ANY_PRECOMPILED = object()
# Normalizer, pre-tokenizer, the model's settings with the values that they may have, and what
# stands around a text.
Parts = tuple[Any, Any, dict[str, tuple[Any, ...]], tuple[str, str]]


def _bert(config: Settings, first: str = "[CLS]", last: str = "[SEP]") -> Parts:
    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    settings = {
        "type": ("WordPiece",),
        "unk_token": (_named(config, "unk", "[UNK]"),),
        "continuing_subword_prefix": ("##",),
        "max_input_chars_per_word": (100,),
    }
    frame = _named(config, "cls", first), _named(config, "sep", last)
    return normalizer, pre_tokenizers.BertPreTokenizer(), settings, frame


def _mpnet(config: Settings) -> Parts:
    return _bert(config, "<s>", "</s>")


def _roberta(config: Settings) -> Parts:
    words = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    off = (None, False, "")
    names = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
    ends = ("continuing_subword_prefix", "end_of_word_suffix")
    settings = {"type": ("BPE",), **dict.fromkeys((*names, *ends), off)}
    frame = _named(config, "cls", "<s>"), _named(config, "sep", "</s>")
    return None, words, settings, frame


def _xlm_roberta(config: Settings) -> Parts:
    scheme = "always" if config.get("add_prefix_space", True) else "never"
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    settings = {"type": ("Unigram",), "unk_id": (3,), "byte_fallback": (None, False)}
    frame = _named(config, "bos", "<s>"), _named(config, "eos", "</s>")
    return ANY_PRECOMPILED, words, settings, frame


_MADE_ANEW: dict[str, Callable[[Settings], Parts]] = {
    "BertTokenizer": _bert,
    "DistilBertTokenizer": _bert,
    "MPNetTokenizer": _mpnet,
    "RobertaTokenizer": _roberta,
    "XLMRobertaTokenizer": _xlm_roberta,
}
_PADDING = {
    "BertTokenizer": "[PAD]",
    "DistilBertTokenizer": "[PAD]",
    "MPNetTokenizer": "<pad>",
    "RobertaTokenizer": "<pad>",
    "XLMRobertaTokenizer": "<pad>",
}
