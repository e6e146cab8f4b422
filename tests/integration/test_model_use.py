"""Prompts, control tokens and pooling of a pipeline: from the option to the vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from pgqueue_embed import Database, Pipeline, Worker
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import ModelMismatch, UsageError
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.model import check_local_model, use_of
from tests.support import zoo
from tests.support.commands import pgembed
from tests.support.corpus import make_source
from tests.support.libraries import SentenceTransformer
from tests.support.zoo import Animal
from tests.support.zoo_tokenizers import BERT

# The tiny vocabulary lacks brackets.
pytestmark = pytest.mark.filterwarnings("ignore:.* does not know")

SAME = 0.9999
TEXT = "The infusion pump stopped."
TITLED = "title[SEP]abstract"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files name prompts."""
    animal = Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT)
    folder = animal.save(tmp_path_factory.mktemp("model"))
    network = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    network.prompts = {"query": "see: ", "document": "note: "}
    network.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def reference(model: Path) -> SentenceTransformer:
    return SentenceTransformer(str(model), device="cpu", local_files_only=True)


def create(conninfo: str, connection: Connection, model: Path, **options: Any) -> Pipeline:
    table = f"source_{options.setdefault('name', 'reports')}"
    make_source(connection, [TEXT, TITLED], table=table)
    return Database(conninfo).create(
        options.pop("name"),
        source_table=table,
        text_field="body",
        model=str(model),
        chunk_size=24,
        overlap_tokens=0,
        **options,
    )


def work(conninfo: str) -> None:
    with Worker(Database(conninfo), drain=True, device="cpu") as running:
        assert running.wait(60) == "drained"


def stored(connection: Connection, name: str) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of a pipeline by their text."""
    target = load_pipeline(connection, name).target
    rows = connection.execute(f"select text_chunk, embedding::real[] from {target}")
    return {text: np.array(vector, np.float32) for text, vector in rows}


def is_like(vector: NDArray[np.float32], reference: SentenceTransformer, text: str) -> bool:
    wanted = reference.encode([text], prompt="", normalize_embeddings=True)[0]
    return bool(wanted @ vector >= SAME)


def test_pipelines_of_one_model_have_prompts_of_their_own(
    conninfo: str, connection: Connection, model: Path, reference: SentenceTransformer
) -> None:
    """Of files, of the options, and none; by one worker, and for searches beside each other."""
    uses = {
        "own": ({}, "note: ", "see: "),
        "said": ({"document_prompt": "a:\\n", "query_prompt": "b: "}, "a:\n", "b: "),
        "without": ({"document_prompt": "none", "query_prompt": "none"}, "", ""),
    }
    for name, (options, _, _) in uses.items():
        create(conninfo, connection, model, name=name, **options).enqueue()
    work(conninfo)
    for name, (_, document, query) in uses.items():
        assert is_like(stored(connection, name)[TEXT], reference, document + TEXT), name
        encoded = Database(conninfo).pipeline(name).encode("pump")
        assert is_like(encoded, reference, f"{query}pump"), name


def test_query_prompt_alone_is_altered_at_once_and_back(
    conninfo: str, connection: Connection, model: Path, reference: SentenceTransformer
) -> None:
    reports = create(conninfo, connection, model)
    for said, prompt in [("query: ", "query: "), ("none", ""), ("", "see: ")]:
        assert pgembed(conninfo, "alter", "reports", "--query-prompt", said).exit_code == 0
        assert len(load_pipelines(connection)) == 1
        assert is_like(reports.encode("pump"), reference, f"{prompt}pump")


def test_prompts_that_are_altered_together_change_together(
    conninfo: str, connection: Connection, model: Path
) -> None:
    reports = create(conninfo, connection, model)
    reports.alter(document_prompt="passage: ", query_prompt="query: ")
    old, new = load_pipelines(connection)
    assert (old.spec.document_prompt, old.spec.query_prompt) == (None, None)
    assert (new.spec.document_prompt, new.spec.query_prompt) == ("passage: ", "query: ")
    reports.alter(query_prompt="q: ")
    assert [each.spec.query_prompt for each in load_pipelines(connection)] == ["q: ", "q: "]
    work(conninfo)
    reports.switch()
    pipeline = load_pipeline(connection, "reports")
    assert (pipeline.spec.document_prompt, pipeline.spec.query_prompt) == ("passage: ", "q: ")
    with pytest.raises(UsageError, match="is like that already"):
        reports.alter(document_prompt="passage: ")


def test_prompts_of_a_file_are_applied_together_and_once(
    conninfo: str, connection: Connection, model: Path, tmp_path: Path
) -> None:
    reports = create(conninfo, connection, model)
    shown = pgembed(conninfo, "show", "reports", "--toml").stdout
    file = tmp_path / "pgembed.toml"
    file.write_text(f"{shown}document_prompt = 'passage: '\nquery_prompt = 'query: '\n")
    assert "by a new generation" in pgembed(conninfo, "apply", str(file), "--dry-run").stdout
    assert pgembed(conninfo, "apply", str(file), "--yes").exit_code == 0
    assert "nothing to do" in pgembed(conninfo, "apply", str(file), "--yes").stdout
    assert [each.spec.query_prompt for each in load_pipelines(connection)] == [None, "query: "]
    work(conninfo)
    reports.switch()
    assert "nothing to do" in pgembed(conninfo, "apply", str(file), "--yes").stdout
    assert 'document_prompt = "passage: "' in pgembed(conninfo, "show", "--toml").stdout
    file.write_text(shown)
    assert pgembed(conninfo, "apply", str(file), "--yes").exit_code == 0
    assert load_pipelines(connection)[-1].spec.document_prompt is None


def test_control_tokens_of_a_text_are_meant_where_that_is_said(
    conninfo: str, connection: Connection, model: Path, reference: SentenceTransformer
) -> None:
    for name, meant in (("plain", False), ("meant", True)):
        reports = create(conninfo, connection, model, name=name, control_tokens=meant)
        reports.enqueue()
        work(conninfo)
        vector = stored(connection, name)[TITLED]
        assert is_like(vector, reference, f"note: {TITLED}") == meant
        assert is_like(reports.encode(TITLED), reference, f"see: {TITLED}") == meant


def test_an_empty_prompt_is_refused_with_the_ways_out(
    conninfo: str, connection: Connection, model: Path
) -> None:
    with pytest.raises(UsageError, match=r"document_prompt is empty; .* own prompt, or give none"):
        create(conninfo, connection, model, document_prompt=" ")
    assert load_pipelines(connection) == []


def test_a_prompt_that_leaves_no_room_is_refused(
    conninfo: str, connection: Connection, model: Path
) -> None:
    with pytest.raises(UsageError, match="chunk_size 24 does not fit"):
        create(conninfo, connection, model, document_prompt="pump " * 80)


def test_a_bare_transformer_is_embedded_with_the_pooling_that_is_said(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    Animal(architecture="Bert", tokenizer="wordpiece", specials=BERT).save_base(tmp_path)
    reports = create(conninfo, connection, tmp_path, pooling="mean")
    reports.enqueue()
    work(conninfo)
    whole = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    assert is_like(stored(connection, "reports")[TEXT], whole, TEXT)
    assert use_of(load_pipeline(connection, "reports").spec).pooling == "mean"


def test_changes_know_what_goes_along_with_vectors() -> None:
    assert Changes(query_prompt="a: ").at_once == {"query_prompt": "a: "}
    assert Changes(query_prompt="").at_once == {"query_prompt": None}
    assert Changes(query_prompt="a: ", chunk_tokens=8, priority=2).at_once == {"priority": 2}


def test_a_fingerprint_of_an_earlier_version_is_taken_with_a_note_and_renewed_by_alter(
    conninfo: str,
    connection: Connection,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It had the adapter's weights, and neither its settings nor the model that it is for."""
    folder = zoo.static_model(tmp_path / "static")
    adapter = folder / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": str(model), "lora_alpha": 8}))
    reports = create(conninfo, connection, folder)
    whole = load_pipeline(connection, "reports")
    earlier = {
        name: digest
        for name, digest in whole.model_files.items()
        if not name.startswith(("adapter_config.json", "base/"))
    }
    assert len(earlier) < len(whole.model_files)
    connection.execute(
        "update pgembed.pipelines set model_fingerprint = %s, model_files = %s",
        ("e" * 64, Jsonb(earlier)),
    )
    reports.enqueue()
    work(conninfo)
    assert "model fingerprint of an earlier version" in caplog.text
    assert len(stored(connection, "reports")) == 2
    reports.alter(model=str(folder))
    assert load_pipelines(connection)[1].model_fingerprint == whole.model_fingerprint
    adapter.write_text(json.dumps({"base_model_name_or_path": str(model), "lora_alpha": 16}))
    check_local_model(load_pipeline(connection, "reports"))
    with pytest.raises(ModelMismatch, match=r"adapter_config\.json differ"):
        check_local_model(load_pipelines(connection)[1])
