"""The models that need no library: all that their files say is understood.

One rule for both networks of this package: that of queries in numpy, that of workers in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pgqueue_embed.embedding import light_files, light_tokenizer
from pgqueue_embed.embedding.light_files import Settings, Stack, require, settings_of
from pgqueue_embed.embedding.light_tokenizer import LightTokenizer
from pgqueue_embed.embedding.model_use import ModelUse
from pgqueue_embed.embedding.network import DOCUMENT, QUERY, Prompts

# What an adapter or another network adds to a folder.
_MORE = ("adapter_config.json", "router_config.json", "*.safetensors.index.json")
_READING = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_ABOUT = {"__version__", "default_prompt_name", "model_type", "prompts", "similarity_fn_name"}
_SENTENCES = "SentenceTransformer"
_SIMILARITIES = (None, "cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True, kw_only=True)
class Understood:
    """A model's folder, read without the library.

    ``max_seq_length`` is where the library cuts a text; ``similarity`` is None where none is named.
    """

    stack: Stack
    tokenizer: LightTokenizer
    prompts: Prompts
    similarity: str | None
    max_seq_length: int

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read for certain, special ones included."""
        return min(self.max_seq_length, self.stack.plan.tokens)


def understand(path: Path, use: ModelUse) -> Understood:
    """Read a model's folder; raises whatever comes of files that say something else than expected.

    A prompt that spells a control token is the library's to read, as are texts that may.
    """
    require(not (use.control_tokens or use.pooling), "how it is used")
    require(not any(any(path.rglob(pattern)) for pattern in _MORE), "more than a network")
    about = settings_of(path, "config_sentence_transformers.json")
    require(about.keys() <= _ABOUT, "a setting of the whole")
    require(about.get("model_type", _SENTENCES) == _SENTENCES, "its kind")
    require(about.get("similarity_fn_name") in _SIMILARITIES, "its similarity")
    tokenizer = light_tokenizer.open_tokenizer(path)
    prompts = _prompts(about)
    for used in (use.document_prompt, use.query_prompt, *map(prompts.own, (DOCUMENT, QUERY))):
        require(not tokenizer.has_control(used or ""), "a control token in a prompt")
    stack = light_files.open_stack(path)
    return Understood(
        stack=stack,
        tokenizer=tokenizer,
        prompts=prompts,
        similarity=about.get("similarity_fn_name"),
        max_seq_length=_limit(path, tokenizer.settings, stack.plan.positions),
    )


def _prompts(about: Settings) -> Prompts:
    require(about.get("default_prompt_name") is None, "a default prompt")
    named = about.get("prompts") or {}
    require(all(isinstance(each, str) for each in named.values()), "its prompts")
    return Prompts(named=named)


def _limit(path: Path, tokenizer: Settings, positions: int) -> int:
    """Return where the library cuts a text; raises NotUnderstood for limits of several kinds."""
    reading = settings_of(path, "sentence_bert_config.json")
    require(reading.keys() <= {*_READING, "max_seq_length"}, "a setting of its reading")
    require(all(reading.get(name, usual) == usual for name, usual in _READING.items()), "reading")
    said = reading.get("max_seq_length")
    if said is None:
        usual = tokenizer.get("model_max_length")
        said = positions if usual is None else min(usual, positions)
        truncation = settings_of(path, "tokenizer.json")["truncation"] or {}
        others = (tokenizer.get("max_length"), truncation.get("max_length"))
        require(all(each is None or each >= said for each in others), "a limit of its tokenizer")
    require(said > 0, "its limit")
    return int(said)
