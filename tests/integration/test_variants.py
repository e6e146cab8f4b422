"""Variants of a real network: what `auto` takes, gives up, changes and remembers."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import (
    AS_ITS_FILES_SAY,
    DeviceThread,
    EmbeddingModel,
    Memory,
    ModelUse,
    chooser,
    keep_heap,
    resolve_model,
)
from pgqueue_embed.embedding import model as models
from pgqueue_embed.embedding.choice import Choice
from pgqueue_embed.embedding.contest import TURNS
from pgqueue_embed.embedding.devices import describe_processor
from pgqueue_embed.embedding.learnt import KEPT_SECONDS
from pgqueue_embed.embedding.light_network import LightNetwork
from pgqueue_embed.embedding.precision import (
    BF16,
    BF16_PACKED,
    BF16_WEIGHTS,
    FP16_WEIGHTS,
    FP32,
    FP32_PACKED,
    LOWEST_COSINE,
    Variant,
)
from pgqueue_embed.embedding.rows import Vectors, agreement, lowest_cosine, unit_rows
from pgqueue_embed.embedding.shapes import SIZES_OF, TABLE_LOOK_UP, limits_for
from pgqueue_embed.log import get_logger
from pgqueue_embed.search_server.encoders import open_model
from tests.support import opened_models
from tests.support.models import make_table_model, make_tiny_model
from tests.support.opened_models import by_library, chunks_of
from tests.support.resident import has_maps, resident_bytes
from tests.support.variants import found_fastest

SAME = 0.99999

load = partial(opened_models.load, precision="auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", dimensions=64)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let batches take as long as a busy machine wants."""
    monkeypatch.setattr(models, "LONGEST_BATCH_SECONDS", float("inf"))


@cache
def in_fp32(folder: Path) -> EmbeddingModel:
    return EmbeddingModel.reference(resolve_model(str(folder)))


@cache
def batch(folder: Path, rows: int) -> tuple[list[Chunk], Vectors]:
    """Return as many different texts, and their vectors in fp32."""
    texts = (f"{number}: the pump stopped " + "again " * 80 for number in range(rows))
    exact = in_fp32(folder)
    chunks = [exact.whole_chunk(text) for text in texts]
    return chunks, exact.forward(chunks)


@pytest.mark.parametrize(
    ("variant", "opened"),
    [
        *((each, nullcontext) for each in (FP32_PACKED, BF16, BF16_WEIGHTS, FP16_WEIGHTS)),
        (BF16_WEIGHTS, by_library),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_vectors_of_each_variant_are_near_those_of_fp32(
    monkeypatch: pytest.MonkeyPatch,
    variant: Variant,
    opened: Callable[[], AbstractContextManager[Any]],
    folder: Path,
) -> None:
    """Those of the bundled model are, too, and the library's are the same: test_light_models."""
    found_fastest(monkeypatch, variant)
    exact = in_fp32(folder)
    with opened():
        assert_near(load(folder), variant, exact)


def assert_near(model: EmbeddingModel, variant: Variant, exact: EmbeddingModel) -> None:
    """Check that a model computes in a variant, chunks in fp32 aside, as it does in fp32."""
    assert model.choice.variant == variant
    assert model.precision == variant.precision
    chunks = chunks_of(model, "The pump stopped.", "设备在使用过程中突然停止工作", "a " * 40)
    wanted = exact.forward(chunks)
    assert lowest_cosine(model.forward(chunks), wanted) >= LOWEST_COSINE
    assert lowest_cosine(unit_rows(model._in_fp32(chunks)), wanted) >= SAME


def test_fp32_is_computed_by_the_faster_products_but_for_what_others_are_compared_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    found_fastest(monkeypatch, FP32_PACKED)
    asked_for = load(folder, precision="fp32")
    assert asked_for.choice.variant == FP32_PACKED
    of_queries = open_model(resolve_model(str(folder)), AS_ITS_FILES_SAY, "cpu")
    assert of_queries.precision == "fp32"
    reference = EmbeddingModel.reference(resolve_model(str(folder)))
    assert (reference.choice.variant, reference.choice.rates) == (FP32, {})
    query = "which pumps have stopped?"
    wanted = reference.encode_query(query)
    assert np.abs(of_queries.launch([of_queries.chunk(query)])()[0] - wanted).max() <= 1e-6
    assert of_queries._model.choice.variant == FP32_PACKED


@pytest.mark.skipif(not has_maps(), reason="this system does not tell what is resident of a file")
def test_weights_that_are_packed_are_in_memory_once(tmp_path: Path) -> None:
    """Those of the file, which were read to be packed, would be there as well."""
    folder = make_tiny_model(tmp_path / "model", dimensions=256)
    network = EmbeddingModel(resolve_model(str(folder)))._network
    file = folder / "model.safetensors"
    assert resident_bytes(file) > 0
    network.pack()
    assert resident_bytes(file) == 0


def test_variants_that_fail_or_disagree_are_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    found_fastest(monkeypatch, BF16_PACKED, BF16_WEIGHTS, FP32_PACKED)

    def fail(_network: LightNetwork) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    convert = LightNetwork.convert

    def zeroed(network: LightNetwork, dtype: str) -> None:
        convert(network, dtype)
        for weight in network._network._weights.values():
            weight.data.fill_(float("nan"))

    monkeypatch.setattr(LightNetwork, "pack", fail)
    monkeypatch.setattr(LightNetwork, "convert", zeroed)
    model = load(folder)
    assert model.choice.variant == FP32
    assert model.choice.refused == (BF16_PACKED, BF16_WEIGHTS, FP32_PACKED)
    assert model.notes == (
        "bf16 weights, oneDNN on cpu fails: no such operator",
        "bf16 weights on cpu does not agree with fp32 on the CPU (lowest cosine 0.00000, needed"
        " 0.999)",
        "fp32, oneDNN on cpu fails: no such operator",
    )
    compute(model, 1)


def test_a_lower_precision_that_was_asked_for_is_not_probed(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(chooser, "probe", pytest.fail)
    for name, variant in (("bf16", BF16), ("fp16", FP16_WEIGHTS)):
        assert load(folder, precision=name).choice == Choice(variant=variant)


class Rivals:
    """Stands for the contest: in real batches, the rival is as much faster as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_faster: bool | Exception) -> None:
        self.turns = 0
        self._answer = is_faster
        monkeypatch.setattr(models, "Contest", lambda *_, **__: self)

    def take_turn(self, _chunks: list[Chunk], _length: int | None, _clock: object) -> bool | None:
        self.turns += 1
        if isinstance(self._answer, Exception):
            raise self._answer
        return None if self.turns < TURNS else self._answer


def compute(model: EmbeddingModel, turns: int) -> None:
    """Let a device compute real batches, which are what they are in fp32."""
    chunks, exact = batch(model._resolved.path, model.limits.rows_at(100))
    with closing(DeviceThread(lambda: model)) as device:
        for _ in range(turns):
            assert lowest_cosine(device.embed(chunks, anew=True).vectors, exact) >= LOWEST_COSINE


def test_the_next_variant_is_taken_where_real_batches_are_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS, FP32_PACKED)
    rivals, told = Rivals(monkeypatch, is_faster=True), []
    monkeypatch.setattr(get_logger(), "info", lambda *said, **fields: told.append((said, fields)))
    memory = Memory(tmp_path)
    model = load(folder, memory=memory)
    assert model.choice.variant == BF16_WEIGHTS
    compute(model, TURNS - 1)
    assert model.choice.variant == BF16_WEIGHTS
    compute(model, 2)
    assert rivals.turns == TURNS
    assert (model.choice.variant, model.precision) == (FP32_PACKED, "fp32")
    monkeypatch.setattr(chooser, "probe", pytest.fail)
    again = load(folder, memory=memory)
    assert again.choice == model.choice
    assert again.choice.is_confirmed
    compute(again, 2)
    assert rivals.turns == TURNS


@pytest.mark.parametrize("answer", [False, RuntimeError("out of memory")])
def test_the_chosen_variant_stays_where_the_next_one_is_no_faster(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, answer: bool | Exception
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS, FP32_PACKED)
    rivals = Rivals(monkeypatch, is_faster=answer)
    model = load(folder, memory=Memory(tmp_path))
    compute(model, TURNS + 1)
    assert rivals.turns == (TURNS if answer is False else 1)
    assert model.choice.variant == BF16_WEIGHTS
    assert model.choice.is_confirmed


def test_real_batches_are_compared_with_the_real_rival(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS, FP32_PACKED)
    model = load(folder, memory=Memory(tmp_path))
    assert model.choice.rival == FP32_PACKED
    compute(model, TURNS)
    assert model.choice.is_confirmed
    assert model.choice.variant in (BF16_WEIGHTS, FP32_PACKED)


def test_batch_is_compared_by_its_own_time_and_not_by_that_of_those_launched_before(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS, FP32_PACKED)
    rivals, now = Rivals(monkeypatch, is_faster=False), [0.0]
    model = load(folder, memory=Memory(tmp_path))
    start = model._start

    def start_slowly(*batch: Any) -> Callable[[], Vectors]:
        read = start(*batch)

        def read_later() -> Vectors:
            now[0] += 0.75
            return read()

        return read_later

    monkeypatch.setattr(models, "LONGEST_BATCH_SECONDS", 1.0)
    monkeypatch.setattr(models, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(model, "_start", start_slowly)
    chunks, _ = batch(folder, model.limits.rows_at(100))
    for read in [model.launch(chunks) for _ in range(TURNS)]:
        read()
    assert rivals.turns == TURNS


def test_small_batches_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS, FP32_PACKED)
    monkeypatch.setattr(models, "Contest", pytest.fail)
    model = load(folder, memory=Memory(tmp_path))
    model.forward(chunks_of(model, "pump"))
    assert not model.choice.is_confirmed


def test_what_was_learnt_is_used_and_named_by_what_it_depends_on(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, FP32_PACKED)
    memory = Memory(tmp_path)
    model = load(folder, memory=memory)
    assert model.limits.sizes_to_try == SIZES_OF["cpu"]
    model.keep_batch_size(2_048)
    (key,) = json.loads((tmp_path / "batch-sizes.json").read_text())
    for part in (
        socket.gethostname(),
        describe_processor(),
        "auto",
        model.fingerprint.digest,
        "torch",
        "thread",
    ):
        assert part in key
    monkeypatch.setattr(chooser, "probe", pytest.fail)
    again = load(folder, memory=memory)
    assert again.choice == model.choice
    assert again.limits == model.limits == limits_for("cpu").resized(2_048)
    found_fastest(monkeypatch, BF16)
    anew = load(folder, memory=Memory(tmp_path, anew=True))
    assert anew.choice.variant == BF16


def test_known_texts_are_computed_in_fp32_once_for_many_starts(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS)
    first = load(folder, memory=Memory(tmp_path))
    canaries = len(first._canaries.chunks)
    computed = Counter[str]()
    plain = EmbeddingModel._plain_forward

    def counted(model: EmbeddingModel, chunks: Sequence[Chunk], *length: int | None) -> Vectors:
        computed[model.precision] += len(chunks)
        return plain(model, chunks, *length)

    monkeypatch.setattr(EmbeddingModel, "_plain_forward", counted)
    again = load(folder, memory=Memory(tmp_path))
    assert again.canary_cosine == pytest.approx(first.canary_cosine, abs=1e-4)
    assert computed == {"bf16": canaries}
    other_use = ModelUse(document_prompt="passage: ")
    load(folder, memory=Memory(tmp_path), use=other_use)
    assert computed == {"bf16": 2 * canaries, "fp32": canaries}


@pytest.mark.parametrize("turned", [[-1, -2], [-1]], ids=["exchanged", "damaged"])
def test_kept_vectors_of_known_texts_refuse_nothing_that_agrees_with_those_of_now(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, turned: list[int]
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS)
    first = load(folder, memory=Memory(tmp_path))
    (file,) = tmp_path.glob("canaries-*")
    right = file.read_bytes()
    wrong = np.frombuffer(right, np.float32).reshape(-1, first.dimensions).copy()
    longest = np.argsort([len(chunk.text) for chunk in first._canaries.chunks])[turned]
    wrong[longest] = -wrong[longest[::-1]]
    file.write_bytes(wrong.tobytes())
    again = load(folder, memory=Memory(tmp_path))
    assert (again.choice.variant, again.choice.refused) == (BF16_WEIGHTS, ())
    assert again.canary_cosine == pytest.approx(first.canary_cosine, abs=1e-4)
    assert file.read_bytes() == right


def test_what_was_remembered_and_does_not_agree_any_more_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, FP32_PACKED, BF16)
    memory = Memory(tmp_path)
    load(folder, memory=memory)

    def fail(_network: Any) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(LightNetwork, "pack", fail)
    assert load(folder, memory=memory).choice.variant == BF16
    monkeypatch.undo()
    monkeypatch.setattr(chooser, "probe", pytest.fail)
    assert load(folder, memory=memory).choice.variant == BF16


def disagree(*_: object) -> float:
    return LOWEST_COSINE - 0.01


def test_what_a_users_text_has_refused_is_not_taken_again(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS, BF16)
    Rivals(monkeypatch, is_faster=True)
    agree = agreement
    for refused in ({BF16_WEIGHTS}, {BF16_WEIGHTS, BF16}):
        model = load(folder, memory=Memory(tmp_path))
        model.keep_batch_size(512)
        model.sample_batches(2)
        monkeypatch.setattr(models, "agreement", agree)
        compute(model, TURNS * (model.precision == "fp32"))
        assert model.precision != "fp32"
        monkeypatch.setattr(models, "agreement", disagree)
        compute(model, 1)
        assert model.choice.variant == FP32
        assert {*model.choice.refused} == refused
    for anew in (False, True):
        again = load(folder, memory=Memory(tmp_path, anew=anew))
        assert (again.choice.variant, again.choice.rival) == (FP32, None)
        assert {*again.choice.refused} == {BF16_WEIGHTS, BF16}


def test_what_is_refused_stays_so_for_days_however_long_the_rest_is_known(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16_WEIGHTS)
    load(folder, memory=Memory(tmp_path))
    file = tmp_path / "batch-sizes.json"
    ((key, known),) = json.loads(file.read_text()).items()
    almost_old = known["learnt_at"] - KEPT_SECONDS + 60
    file.write_text(json.dumps({key: known | {"learnt_at": almost_old}}))
    model = load(folder, memory=Memory(tmp_path))
    model.sample_batches(1)
    monkeypatch.setattr(models, "agreement", disagree)
    compute(model, 1)
    (kept,) = json.loads(file.read_text()).values()
    assert kept["refused"] == ["bf16 weights"]
    assert kept["learnt_at"] >= known["learnt_at"]


def test_a_variant_that_is_changed_to_is_held_to_the_users_texts_as_well(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    found_fastest(monkeypatch, BF16, BF16_WEIGHTS)
    Rivals(monkeypatch, is_faster=True)
    model = load(folder, memory=Memory(tmp_path))
    model.sample_batches(1)
    compute(model, TURNS)
    assert model.choice.variant == BF16_WEIGHTS
    monkeypatch.setattr(models, "agreement", disagree)
    compute(model, 1)
    assert model.choice.variant == FP32


def test_without_a_memory_nothing_is_learnt(folder: Path) -> None:
    model = load(folder)
    assert model.limits == limits_for("cpu")
    assert model._rival is None


def test_a_table_is_looked_up_in_fp32_and_nothing_is_learnt_of_it(tmp_path: Path) -> None:
    path = make_table_model(tmp_path / "model")
    model = load(path, memory=Memory(tmp_path / "cache"))
    assert model.limits == TABLE_LOOK_UP
    assert model.choice == Choice(variant=FP32)
    assert not (tmp_path / "cache").exists()


def test_the_heap_of_a_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_heap()
