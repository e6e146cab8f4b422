"""Other engines for the same forward pass on a CPU: ONNX Runtime and OpenVINO.

In fp32, and in what torch and OpenVINO compute fastest in here, if that is another precision.

Not a target: it shows why the worker computes with torch, or that it should not. The two come with
``pip install onnx onnxruntime openvino``.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ceiling
from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.figures import Figure, Measured, interleaved, ratio
from benchmarks.packages import Missing
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.embedding.inputs import pad
from pgqueue_embed.embedding.rows import lowest_cosine
from pgqueue_embed.embedding.shapes import Batch, plan_batches

PART = "engines"
RECORDS = 30
TORCH = "torch"
INPUTS = ("input_ids", "attention_mask")

Input = dict[str, NDArray[np.int64]]
# From ids and mask, both of shape (n, length), to unit vectors.
Engine = Callable[[Input], NDArray[np.float32]]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure each engine on one thread and on all of them, on the batches of a worker."""
    import torch

    model, chosen = ceiling.load_model("fp32"), ceiling.load_model("auto")
    chunks = ceiling.distinct_chunks(model, maude().sample(RECORDS).documents)
    batches = plan_batches([model.sequence_tokens(chunk) for chunk in chunks], model.limits)
    corpus = f"{len(chunks)} chunks of MAUDE"
    usual = torch.get_num_threads()
    for threads in sorted({1, usual}):
        torch.set_num_threads(threads)
        variants = {TORCH: _own(model, chunks, batches)}
        if chosen.precision != model.precision:
            variants[f"{TORCH}, {chosen.choice.variant}"] = _own(chosen, chunks, batches)
        try:
            with _others(model, threads) as engines:
                inputs = [_input(model, chunks, batch) for batch in batches]
                for name, engine in engines.items():
                    variants[name] = _other(engine, inputs)
                yield _compare(bench, variants, threads, corpus, len(chunks))
        except Missing as missing:
            yield Measured(notes=[f"skipped: {missing}"])
            break
        finally:
            torch.set_num_threads(usual)


Run = Callable[[], NDArray[np.float32]]


def _own(model: EmbeddingModel, chunks: Sequence[Any], batches: Sequence[Batch]) -> Run:
    def run() -> NDArray[np.float32]:
        with model.session():
            return np.concatenate(
                [model.forward([chunks[row] for row in b.rows], length=b.length) for b in batches]
            )

    return run


def _other(engine: Engine, inputs: Sequence[Input]) -> Run:
    return lambda: np.concatenate([engine(each) for each in inputs])


def _compare(
    bench: Bench, variants: dict[str, Run], threads: int, corpus: str, chunks: int
) -> Measured:
    """Compare the vectors of a first run, and the times of the others."""
    vectors = {name: run() for name, run in variants.items()}
    outcomes = interleaved(
        bench.rounds, {name: _timed(run) for name, run in variants.items()}, on_run=bench.on_run
    )
    rates = {name: [chunks / seconds for seconds, _ in runs] for name, runs in outcomes.items()}
    spent = {name: [cpu for _, cpu in runs] for name, runs in outcomes.items()}
    figures = [
        Figure(
            part=PART,
            name=f"forward by {name}, threads: {threads}",
            corpus=corpus,
            unit="chunks/s",
            values=rates[name],
            note=f"{ratio(rates[name], rates[TORCH]):.2f} of torch's rate,"
            f" {ratio(spent[TORCH], spent[name]):.2f} by processor time,"
            f" lowest cosine {lowest_cosine(vectors[name], vectors[TORCH]):.5f}",
        )
        for name in variants
    ]
    return Measured(figures=figures)


def _timed(run: Run) -> Callable[[], tuple[float, float]]:
    """Return a measurement of the seconds on the wall, and of those of the processor."""

    def measure_once() -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - started, time.process_time() - cpu_started

    return measure_once


def _input(model: EmbeddingModel, chunks: Sequence[Any], batch: Batch) -> Input:
    sequences = model._documents.sequences([chunks[row] for row in batch.rows])
    ids, mask = pad(sequences, batch.length, model._documents.part.padding_id or 0)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}


@contextmanager
def _others(model: EmbeddingModel, threads: int) -> Iterator[dict[str, Engine]]:
    """Load the model into both engines; raises Missing where one is not installed."""
    onnxruntime, openvino = _installed("onnxruntime"), _installed("openvino")
    _installed("onnx")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _export(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins while it waits would count as work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        core, engines = openvino.Core(), dict[str, Engine]()
        engines["ONNX Runtime"] = lambda values: session.run(None, values)[0]
        precisions = ["f32", "bf16"] if _multiplies_bf16(core) else ["f32"]
        for precision in precisions:
            hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
            compiled = core.compile_model(file, "CPU", hints)
            engines[f"OpenVINO, {precision}"] = partial(_by_openvino, compiled)
        yield engines


def _multiplies_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _by_openvino(compiled: Any, values: Input) -> NDArray[np.float32]:
    return np.array(compiled(values)[0])


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing(f"other engines: there is no {name} here") from None


def _export(file: Path) -> None:
    """Write the network, mean pooling and scaling included, for any number and length of rows."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc]  # of a library that is Any here
        def __init__(self) -> None:
            super().__init__()
            self.layers = ceiling.load_library()[0].auto_model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            tokens = self.layers(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(tokens.dtype)
            return torch.nn.functional.normalize((tokens * weights).sum(1), dim=1)

    # With a row that is padded: a mask of ones would be left out of what is recorded. And without
    # dropout: what is exported is put back into the mode in which it was, with all that it holds.
    example = (torch.ones(2, 8, dtype=torch.int64), torch.tensor([[1] * 8, [1] * 4 + [0] * 4]))
    axes = {name: {0: "rows", 1: "length"} for name in INPUTS}
    torch.onnx.export(
        Network().eval(), example, file, input_names=list(INPUTS), dynamic_axes=axes, dynamo=False
    )
