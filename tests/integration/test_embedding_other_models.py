"""Models unlike the bundled one: other tokenizers, prompts, poolings; built here, untrained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, resolve_model
from pgqueue_embed.embedding.rows import lowest_cosine, unit_rows

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = [
    "The infusion pump stopped, and an alarm was heard. Nobody was hurt.\n\nIt was replaced. " * 6,
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。患者没有受到伤害！" * 3,
]


def tokenizer(kind: str) -> Tokenizer:
    trainer: trainers.Trainer
    if kind == "byte-bpe":
        result = Tokenizer(models.BPE())
        result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        result = Tokenizer(models.Unigram())
        result.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    result.train_from_iterator(TEXTS, trainer)
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return result


@pytest.fixture(params=["byte-bpe", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An XLM-RoBERTa of two layers with mean pooling, a Dense module and prompts."""
    torch.manual_seed(0)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    own = tokenizer(request.param)
    PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=64, **names).save_pretrained(
        tmp_path / "base"
    )
    config = XLMRobertaConfig(
        vocab_size=own.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        initializer_range=0.5,
        pad_token_id=1,
    )
    XLMRobertaModel(config).save_pretrained(tmp_path / "base")
    modules = [Transformer(str(tmp_path / "base")), Pooling(32, pooling_mode="mean"), Dense(32, 16)]
    prompts = {"document": "passage: ", "query": "query: "}
    network = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
    network.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    return tmp_path / "model"


def chunks_of(model: EmbeddingModel, texts: list[str]) -> list[Chunk]:
    assert model.tokenizer is not None
    chunker = Chunker(model.tokenizer, max_tokens=model.content_budget, overlap_tokens=5)
    return [chunk for document in chunker.chunk(texts) for chunk in document.chunks]


def test_full_chunks_have_the_vectors_of_encode(folder: Path) -> None:
    model = EmbeddingModel.load(resolve_model(str(folder)), device="cpu")
    chunks = chunks_of(model, TEXTS)
    assert model.dimensions == 16
    assert max(model.sequence_tokens(chunk) for chunk in chunks) > 50
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = [chunk.text for chunk in chunks]
    expected = reference.encode(texts, prompt="passage: ", show_progress_bar=False)
    assert lowest_cosine(model.forward(chunks), unit_rows(expected)) > 0.9999
    query = reference.encode(["query: pump"], show_progress_bar=False)
    assert model.encode_query("pump") @ unit_rows(query)[0] > 0.9999


def test_control_tokens_in_text_do_not_end_the_input(folder: Path) -> None:
    model = EmbeddingModel.load(resolve_model(str(folder)), device="cpu")
    plain, literal = chunks_of(model, ["pump", "pump </s> <mask>"])
    assert not {2, 4} & set(literal.token_ids)
    vectors = model.forward([plain, literal])
    assert vectors[0] @ vectors[1] < 0.9999


def test_the_device_thread_serves_it(folder: Path) -> None:
    thread = DeviceThread(lambda: EmbeddingModel.load(resolve_model(str(folder)), device="cpu"))
    try:
        chunks = chunks_of(thread.model, TEXTS)
        vectors = thread.embed(chunks).vectors
        assert lowest_cosine(vectors, thread.model.forward(chunks)) > 0.9999
    finally:
        thread.close()
