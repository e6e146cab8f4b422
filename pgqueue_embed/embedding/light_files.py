"""Reads the files of a model (network, pooling, what follows) where all of them are understood.

A setting counts only if its name is known here and its value is one for which the numpy network is
proved equal to the library. All else raises `NotUnderstood`, and the library reads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from pgqueue_embed.embedding.mapped_weights import Weights, map_weights
from pgqueue_embed.embedding.numpy_network import Array, Names, NumpyNetwork, Plan
from pgqueue_embed.untrusted.bounded_file import read_json

Settings = dict[str, Any]
# From the vectors of tokens, shape (tokens, width), to the vector of the text, and on from there.
Step = Callable[[Array], Array]


class NotUnderstood(Exception):
    """The files of a model say something that only the library can follow."""


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
_DISTIL_SIZES = _SIZES | {
    "width": "dim",
    "inner_width": "hidden_dim",
    "layers": "n_layers",
    "heads": "n_heads",
}
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


def open_network(path: Path) -> NumpyNetwork:
    """Return the network of a model's folder; raises NotUnderstood."""
    plan = plan_of(settings_of(path, "config.json"))
    weights, others = map_weights(path / "model.safetensors")
    _check_weights(weights, others, plan.shapes())
    return NumpyNetwork(plan, weights)


def plan_of(config: Settings) -> Plan:
    """Return the plan of a network from its configuration; raises NotUnderstood."""
    kind = config["model_type"]
    sizes = _DISTIL_SIZES if kind == "distilbert" else _SIZES
    activation = "activation" if kind == "distilbert" else "hidden_act"
    known = _WITHOUT_EFFECT | _USUAL.keys() | {*sizes.values(), activation, "type_vocab_size"}
    require(config.keys() <= known, "a setting that is not known")
    require(config[activation] == "gelu", "its activation")
    require(all(config.get(name, usual) == usual for name, usual in _USUAL.items()), "its kind")
    # Fixed in the code of DistilBERT.
    found = {"layer_norm_eps": 1e-12, **config}
    plan = _plan(kind, config, {field: found[name] for field, name in sizes.items()})
    require(plan.width % plan.heads == 0, "its heads")
    return plan


def _plan(kind: str, config: Settings, sizes: dict[str, Any]) -> Plan:
    if kind == "distilbert":
        return Plan(names=_DISTIL, **sizes)
    if kind == "mpnet":
        return Plan(names=_MPNET, padding_id=1, distances=True, **sizes)
    require(kind in ("bert", "roberta", "xlm-roberta"), "its architecture")
    behind = None if kind == "bert" else int(config["pad_token_id"])
    return Plan(names=Names(), padding_id=behind, types=config["type_vocab_size"], **sizes)


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


def open_steps(path: Path, width: int) -> list[Step]:
    """Return what makes one vector of the vectors of tokens; raises NotUnderstood.

    Scaling to length 1 is left out at the end, where every vector is scaled, and is a step before.
    """
    modules = read_json(path / "modules.json")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    require(kinds[:2] == ["Transformer", "Pooling"], "its modules")
    require(not modules[0]["path"], "where its network lies")
    steps = [_pooling(settings_of(path / modules[1]["path"], "config.json"), width)]
    for kind, module in zip(kinds[2:], modules[2:], strict=True):
        require(kind in ("Dense", "Normalize"), "its modules")
        steps.append(_scaled if kind == "Normalize" else _dense(path / module["path"]))
    return steps


def _pooling(config: Settings, width: int) -> Step:
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


def _mean(tokens: Array) -> Array:
    mean: Array = tokens.sum(0) / np.float32(len(tokens))
    return mean


def _first(tokens: Array) -> Array:
    first: Array = tokens[0]
    return first


_POOLINGS: dict[str, Step] = {
    "mean": _mean,
    "pooling_mode_mean_tokens": _mean,
    "cls": _first,
    "pooling_mode_cls_token": _first,
}


def _scaled(vector: Array) -> Array:
    scaled: Array = vector / np.maximum(np.linalg.norm(vector), np.float32(1e-12))
    return scaled


_ACTIVATIONS: dict[str, Step] = {
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.linear.Identity": np.asarray,
}
_DENSE = {
    "in_features",
    "out_features",
    "bias",
    "activation_function",
    "module_input_name",
    "module_output_name",
}


def _dense(folder: Path) -> Step:
    config = settings_of(folder, "config.json")
    require(config.keys() <= _DENSE, "a setting of a Dense layer")
    places = {config.get(name, _SENTENCE) for name in ("module_input_name", "module_output_name")}
    require(places == {_SENTENCE}, "what a Dense layer reads")
    activation = _ACTIVATIONS[config["activation_function"]]
    shapes: dict[str, tuple[int, ...]] = {
        "linear.weight": (config["out_features"], config["in_features"])
    }
    if config["bias"]:
        shapes["linear.bias"] = (config["out_features"],)
    weights, others = map_weights(folder / "model.safetensors")
    found = {name: array.shape for name, array in weights.items()}
    require(found == shapes and not others, "the weights of a Dense layer")
    matrix = weights["linear.weight"].astype(np.float32)
    bias = weights["linear.bias"].astype(np.float32) if config["bias"] else np.float32(0)
    return lambda vector: activation(matrix @ vector + bias)


_SENTENCE = "sentence_embedding"
