"""The forward pass alone, on chunks that are ready: in each precision, and each size of batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from pgqueue_embed.bench.texts import documents
from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.embedding import EmbeddingModel, Memory, keep_heap, resolve_model
from pgqueue_embed.embedding.batch_runner import BatchRunner
from pgqueue_embed.embedding.batch_sizes import best_size
from pgqueue_embed.embedding.devices import describe_device, kind_of
from pgqueue_embed.embedding.precision import AUTO, FP32, Variant, candidates
from pgqueue_embed.embedding.probe import HOPELESS, in_a_line, probe
from pgqueue_embed.embedding.shapes import SIZES_OF, plan_batches
from pgqueue_embed.pipeline.spec import PipelineSpec

# A measurement is of some batches of the largest size, or fewer where these take too long.
BATCHES = 2
CUT_DOCUMENTS = 64
FIRST_CHUNKS = 8
PASSES = 3

REFUSED_BY_A_TEXT = "a worker here has refused it in the last days"

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A way to compute: the lowest `cosine` of its canaries to fp32 on the CPU, and its rate.

    What was not measured is None, and `reason` says why, or why workers refuse it. They take the
    one that `is_taken`.
    """

    name: str
    cosine: float | None
    chunks_per_second: float | None
    is_taken: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of batches in tokens, and the rate in it."""

    batch_tokens: int
    chunks_per_second: float
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What the forward pass does alone; `chunks_per_second` is that of what workers take."""

    model: str
    dimensions: int
    device: str
    device_name: str
    chunk_tokens: int
    overlap_tokens: int
    chunks_per_document: float
    tokens_per_chunk: float
    chunks_per_second: float
    tried: Sequence[Tried]
    sizes: Sequence[Size]


def measure_forward(
    model_name: str, device: str, seconds: float, tell: Tell = lambda _: None
) -> Forward:
    """Measure for about so many seconds, the opening of the model not counted.

    What is found of sizes is kept as what workers learn is. Raises as `EmbeddingModel.load` does.
    """
    tell(f"opening {model_name}")
    keep_heap()
    resolved = resolve_model(model_name)
    model = EmbeddingModel.load(resolved, device=device, memory=Memory(anew=True))
    chunk_tokens = min(PipelineSpec.chunk_tokens, model.content_budget)
    overlap_tokens = min(PipelineSpec.overlap_tokens, chunk_tokens // 4)
    cut = Chunker(model.tokenizer, max_tokens=chunk_tokens, overlap_tokens=overlap_tokens)
    texts = list(islice(documents(), CUT_DOCUMENTS))
    some = [chunk for each in cut.chunk(texts) for chunk in each.chunks]
    chunks = _sample(model, cut, seconds / 2)
    # Sizes first: each variant is timed in the batches that workers come to.
    sizes = _sizes(model, chunks, seconds / 2, tell)
    tried = list(_tried(EmbeddingModel(resolved), model, chunks, seconds / 2, tell))
    alone = [each.chunks_per_second for each in sizes if each.is_best]
    alone += [each.chunks_per_second for each in tried if each.is_taken and each.chunks_per_second]
    return Forward(
        model=model.name,
        dimensions=model.dimensions,
        device=model.device,
        device_name=describe_device(model.device),
        chunk_tokens=chunk_tokens,
        overlap_tokens=overlap_tokens,
        chunks_per_document=len(some) / len(texts),
        tokens_per_chunk=sum(map(model.sequence_tokens, some)) / len(some),
        chunks_per_second=max(alone),
        tried=tried,
        sizes=sizes,
    )


def _sample(model: EmbeddingModel, cut: Chunker, seconds: float) -> list[Chunk]:
    """Return as many chunks as a measurement of each kind has time for, each text once."""
    kind = kind_of(model.device)
    sizes = SIZES_OF[kind] if model.is_transformer else ()
    most = BATCHES * max((*sizes, model.limits.max_tokens_per_batch))
    found: dict[str, Chunk] = {}
    tokens = 0
    for text in documents():
        (document,) = cut.chunk([text])
        for chunk in document.chunks:
            if chunk.text not in found:
                found[chunk.text] = chunk
                tokens += model.sequence_tokens(chunk)
        if tokens >= most or len(found) >= most // 16:
            break
    chunks = list(found.values())
    first = chunks[:FIRST_CHUNKS]
    _pass(model, first)()
    rate = _pass(model, first)()
    # A pass to warm up and some that count, of each variant and size.
    affordable = int(rate * seconds / (PASSES * (len(sizes) + 2)))
    return chunks[: max(FIRST_CHUNKS, affordable)]


def _pass(model: EmbeddingModel, chunks: Sequence[Chunk]) -> Callable[[], float]:
    """Return what computes the chunks once, in a worker's batches, and returns its rate."""
    runner = BatchRunner(model)
    limits = model.limits.settled(model.limits.max_tokens_per_batch)
    batches = plan_batches([model.sequence_tokens(each) for each in chunks], limits)

    def measure() -> float:
        started = time.perf_counter()
        with model.session():
            for _ in runner.run(chunks, batches):
                pass
        return len(chunks) / (time.perf_counter() - started)

    return measure


def _rate(model: EmbeddingModel, chunks: Sequence[Chunk], seconds: float) -> float:
    """Return the median rate of the passes of some seconds; the first one prepares the device."""
    measure = _pass(model, chunks)
    measure()
    rates: list[float] = []
    deadline = time.perf_counter() + seconds
    while not rates or (time.perf_counter() < deadline and len(rates) < 10 * PASSES):
        rates.append(measure())
    return median(rates)


def _sizes(
    model: EmbeddingModel, chunks: Sequence[Chunk], seconds: float, tell: Tell
) -> list[Size]:
    if not model.is_transformer:
        return []
    sizes = SIZES_OF[kind_of(model.device)]
    rates: dict[int, float] = {}
    usual = model.limits
    for size in sizes:
        tell(f"batches of {size:,} tokens")
        model.limits = usual.settled(size)
        rates[size] = _rate(model, chunks, seconds / len(sizes) / 2)
    best = best_size(rates)
    model.keep_batch_size(best)
    return [
        Size(batch_tokens=size, chunks_per_second=rate, is_best=size == best)
        for size, rate in rates.items()
    ]


def _tried(
    subject: EmbeddingModel,
    taken: EmbeddingModel,
    chunks: Sequence[Chunk],
    seconds: float,
    tell: Tell,
) -> Iterator[Tried]:
    """Yield what each way to compute does; `subject` is placed in all of them, one by one."""
    device, chosen = taken.device, taken.choice.variant
    variants = candidates(device, AUTO) if taken.is_transformer else (FP32,)
    probed = probe(variants, device)
    fastest = max(probed.rates.values())
    for variant in variants:
        rate = probed.rates.get(variant)
        name = str(variant)
        if rate is None:
            yield _not_timed(name, probed.failures.get(variant, "it failed in the probe"))
        elif rate * HOPELESS < fastest and variant != chosen:
            yield _not_timed(name, f"{rate / fastest:.2f} of the fastest by the probe")
        else:
            tell(f"the forward pass in {name}")
            yield _timed(
                subject,
                taken,
                variant,
                is_taken=variant == chosen,
                rate=lambda: _rate(subject, chunks, seconds / len(variants) / 2),
            )


def _timed(
    subject: EmbeddingModel,
    taken: EmbeddingModel,
    variant: Variant,
    *,
    is_taken: bool,
    rate: Callable[[], float],
) -> Tried:
    try:
        cosine = subject.place_in(taken.device, variant)
        subject.limits = taken.limits
        found = rate()
    except Exception as error:  # noqa: BLE001 - of torch or a library; the next one may do
        return _not_timed(str(variant), in_a_line(error))
    reason = ""
    if cosine < variant.lowest_cosine:
        reason = f"its cosine is below {variant.lowest_cosine}"
    elif variant in taken.choice.refused:
        reason = REFUSED_BY_A_TEXT
    return Tried(
        name=str(variant),
        cosine=cosine,
        chunks_per_second=found,
        is_taken=is_taken,
        reason=reason,
    )


def _not_timed(name: str, reason: str) -> Tried:
    return Tried(name=name, cosine=None, chunks_per_second=None, is_taken=False, reason=reason)


def from_json(values: Mapping[str, object]) -> Forward:
    """Return what another process has measured, from `dataclasses.asdict`."""
    known = dict(values)
    known["tried"] = [Tried(**each) for each in known["tried"]]  # type: ignore[attr-defined]
    known["sizes"] = [Size(**each) for each in known["sizes"]]  # type: ignore[attr-defined]
    return Forward(**known)  # type: ignore[arg-type]
