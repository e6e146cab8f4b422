"""Reads the files of a model (network, pooling, what follows) where all of them are understood.

A setting counts only if its name is known here and its value is one for which the networks of this
package are proved equal to the library. All else raises `NotUnderstood`, and the library reads the
model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pgqueue_embed.embedding.mapped_weights import Weights, map_weights
from pgqueue_embed.embedding.network_plan import Names, NetworkPlan
from pgqueue_embed.untrusted.bounded_file import read_json

Settings = dict[str, Any]


class NotUnderstood(Exception):
    """The files of a model say something that only the library can follow."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer for the vector of a text: ``weight`` of shape (outputs, inputs), and a bias.

    ``activation``, Tanh or Identity, is what comes behind it.
    """

    weight: NDArray[Any]
    bias: NDArray[Any] | None
    activation: str


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """A vector is scaled to length 1."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A network with its weights, of which ``plan.shapes()`` names all, and what follows.

    ``pooling``, mean or cls, is how the vectors of tokens become one; ``after`` what becomes of it.
    """

    plan: NetworkPlan
    weights: Weights
    pooling: str
    after: tuple[Dense | Normalize, ...]


def require(condition: object, what: str) -> None:
    """Raise NotUnderstood unless ``condition`` holds."""
    if not condition:
        raise NotUnderstood(what)


def settings_of(path: Path, name: str) -> Settings:
    """Return the settings of a JSON file of the model, which must be there."""
    value = read_json(path / name)
    require(isinstance(value, dict), name)
    found: Settings = value
    return found


# They have no part in a vector, or are looked at by their name below.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_dropout",
    "dropout",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "output_past",
    "pad_token_id",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "directionality",
    "qa_dropout",
    "seq_classif_dropout",
    "sinusoidal_pos_embds",
    "tie_weights_",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_USUAL = {
    "add_cross_attention": False,
    "is_decoder": False,
    "position_embedding_type": "absolute",
    "relative_attention_num_buckets": 32,
}
_SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "inner_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
    "epsilon": "layer_norm_eps",
}
_DISTIL_SIZES = {
    "vocabulary": "vocab_size",
    "width": "dim",
    "inner_width": "hidden_dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "positions": "max_position_embeddings",
}
# Fixed in the code of DistilBERT, whatever its files say.
_EPSILON = 1e-12
_LIKE_BERT = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}
_MPNET = Names(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attended="attention.attn.o",
    attended_norm="attention.LayerNorm",
)
_DISTIL = Names(
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attended_norm="sa_layer_norm",
    inner="ffn.lin1",
    outer="ffn.lin2",
    outer_norm="output_layer_norm",
)


def open_stack(path: Path) -> Stack:
    """Return what makes a vector in a model's folder; raises NotUnderstood."""
    plan = plan_of(settings_of(path, "config.json"))
    weights, others = map_weights(path / "model.safetensors")
    _check_weights(weights, others, plan.shapes())
    pooling, after = _what_follows(path, plan.width)
    return Stack(plan=plan, weights=weights, pooling=pooling, after=after)


def plan_of(config: Settings) -> NetworkPlan:
    """Return the plan of a network from its configuration; raises NotUnderstood."""
    kind = config["model_type"]
    sizes = _DISTIL_SIZES if kind == "distilbert" else _SIZES
    activation = "activation" if kind == "distilbert" else "hidden_act"
    known = _WITHOUT_EFFECT | _USUAL.keys() | {*sizes.values(), activation, "type_vocab_size"}
    require(config.keys() <= known, "a setting that is not known")
    require(config[activation] == "gelu", "its activation")
    require(all(config.get(name, usual) == usual for name, usual in _USUAL.items()), "its kind")
    found = {"layer_norm_eps": _EPSILON, **config}
    plan = _plan(kind, config, {field: found[name] for field, name in sizes.items()})
    require(plan.width % plan.heads == 0, "its heads")
    return plan


def _plan(kind: str, config: Settings, sizes: dict[str, Any]) -> NetworkPlan:
    if kind == "distilbert":
        return NetworkPlan(architecture="DistilBertModel", names=_DISTIL, epsilon=_EPSILON, **sizes)
    if kind == "mpnet":
        kinds = {"architecture": "MPNetModel", "names": _MPNET}
        return NetworkPlan(padding_id=1, distances=True, **(sizes | kinds))
    require(kind in _LIKE_BERT, "its architecture")
    behind = None if kind == "bert" else int(config["pad_token_id"])
    return NetworkPlan(
        architecture=_LIKE_BERT[kind],
        names=Names(),
        padding_id=behind,
        types=config["type_vocab_size"],
        **sizes,
    )


def _check_weights(
    weights: Weights, others: Collection[str], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Raise NotUnderstood unless the weights are those of the network, and its unused pooler."""
    found = {name: array.shape for name, array in weights.items() if name in shapes}
    require(found == shapes, "a weight is missing, or of another shape")
    more = (weights.keys() | set(others)) - shapes.keys()
    unused = ("pooler.", "embeddings.position_ids")
    require(all(name.startswith(unused) for name in more), "a weight that has no place")


# What follows the network ---------------------------------------------------------------------


def _what_follows(path: Path, width: int) -> tuple[str, tuple[Dense | Normalize, ...]]:
    """Return the pooling and what is behind it, as the list of modules says."""
    modules = read_json(path / "modules.json")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    require(kinds[:2] == ["Transformer", "Pooling"], "its modules")
    require(not modules[0]["path"], "where its network lies")
    pooling = _pooling(settings_of(path / modules[1]["path"], "config.json"), width)
    after: list[Dense | Normalize] = []
    for kind, module in zip(kinds[2:], modules[2:], strict=True):
        require(kind in ("Dense", "Normalize"), "its modules")
        if kind == "Normalize":
            after.append(_normalize(path / module["path"]))
            continue
        layer = _dense(path / module["path"])
        require(layer.weight.shape[1] == width, "the width of a Dense layer")
        width = len(layer.weight)
        after.append(layer)
    return pooling, tuple(after)


def _pooling(config: Settings, width: int) -> str:
    asked = {"word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode"}
    flags = {name: on for name, on in config.items() if name.startswith("pooling_mode_")}
    require(config.keys() <= asked | flags.keys(), "a setting of its pooling")
    require(config.get("include_prompt", True) is True, "a prompt that is left out")
    widths = {
        config.get(name, width) for name in ("word_embedding_dimension", *asked) if "dim" in name
    }
    require(widths == {width}, "the width of its pooling")
    named = config.get("pooling_mode")
    modes = [name for name, on in flags.items() if on] if named is None else [named]
    pooling = _POOLINGS.get(modes[0]) if len(modes) == 1 and isinstance(modes[0], str) else None
    if pooling is None or (flags and named is not None):
        raise NotUnderstood("its pooling")
    return pooling


_POOLINGS = {
    "mean": "mean",
    "pooling_mode_mean_tokens": "mean",
    "cls": "cls",
    "pooling_mode_cls_token": "cls",
}
_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "Tanh",
    "torch.nn.modules.linear.Identity": "Identity",
}
_SENTENCE = "sentence_embedding"
_PLACES = {"module_input_name", "module_output_name"}
_DENSE = {"in_features", "out_features", "bias", "activation_function"}


def _normalize(folder: Path) -> Normalize:
    # Models that were saved long ago have no file for it.
    if (folder / "config.json").is_file():
        config = settings_of(folder, "config.json")
        require(config.keys() <= _PLACES, "a setting of its scaling")
        _check_places(config)
    return Normalize()


def _dense(folder: Path) -> Dense:
    config = settings_of(folder, "config.json")
    require(config.keys() <= _DENSE | _PLACES, "a setting of a Dense layer")
    _check_places(config)
    shapes: dict[str, tuple[int, ...]] = {
        "linear.weight": (config["out_features"], config["in_features"])
    }
    if config["bias"]:
        shapes["linear.bias"] = (config["out_features"],)
    weights, others = map_weights(folder / "model.safetensors")
    found = {name: array.shape for name, array in weights.items()}
    require(found == shapes and not others, "the weights of a Dense layer")
    return Dense(
        weight=weights["linear.weight"],
        bias=weights.get("linear.bias"),
        activation=_ACTIVATIONS[config["activation_function"]],
    )


def _check_places(config: Settings) -> None:
    """Raise NotUnderstood unless a module reads and writes the vector of the text."""
    require({config.get(name, _SENTENCE) for name in _PLACES} == {_SENTENCE}, "its places")
