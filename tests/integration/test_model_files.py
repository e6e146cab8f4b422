"""Files of a model that do not go together, and networks that a batch or a length changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.embedding import refuse_unsuited
from pgqueue_embed.embedding.reader import TEXTS
from pgqueue_embed.embedding.rows import lowest_cosine, unit_rows
from pgqueue_embed.errors import ModelError, RecordFault, UsageError
from tests.support import zoo
from tests.support.libraries import (
    Dense,
    Pooling,
    Router,
    SentenceTransformer,
    Transformer,
    load_file,
    save_file,
    torch,
    transformers,
)
from tests.support.opened_models import chunks_of, load
from tests.support.plain_model import PLAIN, SAME, change
from tests.support.zoo import WIDTH, spread
from tests.support.zoo_tokenizers import BERT, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain model, to be changed."""
    return PLAIN.save(tmp_path / "model")


def save(folder: Path, *modules: Any) -> Path:
    SentenceTransformer(modules=list(modules), device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


def change_weights(file: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    weights = {name: each.clone() for name, each in changed(load_file(file)).items()}
    save_file(weights, file, metadata={"format": "pt"})


def without_the_last_layer(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in weights.items() if "layer.1." not in name}


# Weights


@pytest.mark.parametrize("route", ["query", "document"])
def test_a_missing_layer_of_one_route_is_refused(tmp_path: Path, route: str) -> None:
    both = {name: PLAIN.modules(tmp_path / f"{name}-base") for name in ("query", "document")}
    model = save(tmp_path / "model", Router.for_query_document(both["query"], both["document"]))
    load(model)
    (file,) = model.glob(f"{route}_*/model.safetensors")
    change_weights(file, without_the_last_layer)
    with pytest.raises(ModelError, match="lacks weights of BertModel"):
        load(model)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=64)
    with pytest.raises(
        ModelError, match=r"weight encoder\.layer\.0\.\S+ has shape \(48,?.*takes \(64,?"
    ):
        load(folder)


HEADS = ("cls.predictions.transform.dense.weight", "lm_head.bias", "vocab_projector.weight")
STRAY = ("projection.weight", "linear.weight", "0.auto_model.encoder.layer.0.output.dense.weight")


@pytest.mark.parametrize("name", [*HEADS, "classifier.weight", "embed_out.weight", *STRAY])
def test_weights_without_a_place_are_refused_unless_they_are_a_heads(
    folder: Path, name: str
) -> None:
    more = {name: torch.ones(2, 2)}
    change_weights(folder / "model.safetensors", lambda weights: weights | more)
    facts = load(folder).facts  # a pipeline of an earlier version goes on
    if name in STRAY:
        with pytest.raises(ModelError, match=rf"has a place for the weight {name} \(1 in all\)"):
            refuse_unsuited(facts)
    else:
        refuse_unsuited(facts)


def test_a_weight_within_the_network_without_a_place_is_refused(folder: Path) -> None:
    more = {"encoder.alibi": torch.ones(2, 2)}
    change_weights(folder / "model.safetensors", lambda weights: weights | more)
    with pytest.raises(ModelError, match=r"has no place for the weight encoder\.alibi"):
        load(folder)


def test_what_a_dense_layer_lacks_is_named(tmp_path: Path) -> None:
    model = save(tmp_path / "model", *PLAIN.modules(tmp_path / "base"), Dense(WIDTH, 16))
    (file,) = model.glob("2_Dense/model.safetensors")
    change_weights(file, lambda weights: {"linear.weight": weights["linear.weight"]})
    with pytest.raises(ModelError, match=r"linear\.bias"):
        load(model)


def test_an_activation_that_the_library_replaces_is_refused(tmp_path: Path) -> None:
    model = save(tmp_path / "model", *PLAIN.modules(tmp_path / "base"), Dense(WIDTH, 16))
    change(model / "2_Dense" / "config.json", activation_function="mine.Activation")
    with pytest.raises(ModelError, match="would give wrong vectors here"):
        load(model)


def test_weights_without_numbers_are_refused_by_name(folder: Path) -> None:
    change_weights(
        folder / "model.safetensors",
        lambda weights: {name: each * torch.nan for name, each in weights.items()},
    )
    with pytest.raises(ModelError, match=r"model .* fails on known texts: .*no usable vector"):
        load(folder)


def of_another_vocabulary(tmp_path: Path) -> Path:
    """A network that has fewer vectors for tokens than its tokenizer has tokens."""
    model = PLAIN.save(tmp_path / "model")
    change(model / "config.json", vocab_size=260)
    table = "embeddings.word_embeddings.weight"
    change_weights(model / "model.safetensors", lambda all_: all_ | {table: all_[table][:260]})
    return model


def table_of_another_vocabulary(tmp_path: Path) -> Path:
    model = zoo.static_model(tmp_path / "model")
    (file,) = model.rglob("model.safetensors")
    change_weights(file, lambda all_: {name: each[:260] for name, each in all_.items()})
    return model


@pytest.mark.parametrize("make", [of_another_vocabulary, table_of_another_vocabulary])
def test_tokens_without_a_vector_are_refused(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has vectors for 260 tokens, and its tokenizer has more"):
        load(make(tmp_path))


def test_a_control_token_without_a_vector_is_not_missed(folder: Path) -> None:
    """As in Gemma 3, whose token for images lies behind the table of its text model."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    model = load(folder)
    assert len(model.forward(chunks_of(model, "an <image> of a pump"))) == 1


# Routes


def test_a_router_without_a_route_for_documents_is_refused(tmp_path: Path) -> None:
    routes = {name: PLAIN.modules(tmp_path / f"{name}-base") for name in ("query", "passage")}
    model = save(tmp_path / "model", Router(routes, default_route="passage"))
    with pytest.raises(ModelError, match=r"reads no document: .*task='passage'"):
        load(model)


# What a batch or a length does


def network(name: str, **sizes: Any) -> Callable[[Path], Path]:
    """Return what makes a model of another architecture."""

    def make(tmp_path: Path) -> Path:
        own = tokenizer("wordpiece", BERT)
        transformers.PreTrainedTokenizerFast(tokenizer_object=own, **BERT.names).save_pretrained(
            tmp_path / "base"
        )
        config = getattr(transformers, f"{name}Config")(
            vocab_size=own.get_vocab_size(), pad_token_id=own.token_to_id("[PAD]"), **sizes
        )
        torch.manual_seed(5)
        made = getattr(transformers, f"{name}Model")(config)
        spread(made)
        made.save_pretrained(tmp_path / "base")
        first = Transformer(str(tmp_path / "base"))
        return save(tmp_path / "model", first, Pooling(first.get_embedding_dimension(), "mean"))

    return make


SIZES = zoo._ENCODER
CHANGED_BY_PADDING = {
    "ConvBert": network("ConvBert", **SIZES, embedding_size=WIDTH, head_ratio=1),
    "MobileBert": network(
        "MobileBert", **SIZES, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16
    ),
    "Funnel": network("Funnel", d_model=WIDTH, n_head=2, d_head=16, d_inner=48, block_sizes=[1, 1]),
}


@pytest.mark.parametrize("name", CHANGED_BY_PADDING)
def test_vectors_that_padding_changes_are_computed_alone(name: str, tmp_path: Path) -> None:
    folder = CHANGED_BY_PADDING[name](tmp_path)
    model = load(folder)
    assert model.facts.computed_alone
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    chunks = chunks_of(model, "pump", "The pump stopped.", "nobody was hurt, " * 9, "设备 (2)")
    wanted = [reference.encode_document(each.text, show_progress_bar=False) for each in chunks]
    found = model.forward(chunks, length=max(map(model.sequence_tokens, chunks)) + 8)
    assert lowest_cosine(found, unit_rows(np.stack(wanted))) >= SAME


def test_others_are_computed_in_batches(folder: Path) -> None:
    assert not load(folder).facts.computed_alone


def test_positions_of_an_encoder_with_a_decoder_are_its_limit(tmp_path: Path) -> None:
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers",)}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    inner = {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
    positions = {f"max_{side}_position_embeddings": 128 for side in ("encoder", "decoder")}
    make = network(
        "LED", d_model=WIDTH, attention_window=[8, 8], **layers, **heads, **inner, **positions
    )
    model = load(make(tmp_path))
    assert model.max_sequence_tokens == 128
    model.try_chunk_of(model.content_budget)


TWICE = "{% for m in messages %}{{ m['content'] }}\n{{ m['content'] }}{% endfor %}"


def saying_twice(folder: Path, limit: int) -> Path:
    """A template that says a text twice needs twice the tokens, which no count here can know."""
    base = folder.with_name("base")
    sizes = {"max_position_embeddings": limit}
    animal = replace(zoo.ZOO["qwen3"], model_max_length=limit, config=sizes, dtype="float32")
    animal.save_base(base)
    (base / "chat_template.jinja").write_text(TWICE)
    return save(folder, Transformer(str(base)), Pooling(WIDTH, "lasttoken"))


def test_what_the_library_would_cut_is_refused(tmp_path: Path) -> None:
    folder = saying_twice(tmp_path / "model", limit=600)
    model = load(folder)
    assert model.facts.feeding == TEXTS
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    fitting, longer, *_ = chunks_of(model, "the pump stopped", "pump " * 400)
    wanted = unit_rows(reference.encode_document([fitting.text], show_progress_bar=False))
    assert lowest_cosine(model.forward([fitting]), wanted) >= SAME
    with pytest.raises(RecordFault, match="a chunk of more than 600 tokens does not fit"):
        model.forward([longer])
    with pytest.raises(UsageError, match="the query has more than 600 tokens"):
        model.encode_query(longer.text)
    model.try_chunk_of(200)
    with pytest.raises(ModelError, match="give a smaller --chunk-size"):
        model.try_chunk_of(model.content_budget)


def test_a_model_that_known_texts_are_too_long_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fails on known texts: a chunk of more than 96 tokens"):
        load(saying_twice(tmp_path / "model", limit=96))


def test_padding_to_a_fixed_length_is_left_out(folder: Path) -> None:
    settings = {"text": {"padding": "max_length", "max_length": 40}}
    change(folder / "sentence_bert_config.json", processing_kwargs=settings)
    model = load(folder)
    assert (model.max_sequence_tokens, model.content_budget) == (40, 38)
