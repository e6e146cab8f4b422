"""Parts 1 to 4: the model alone, the library, a script, and `pgembed work`, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sentence_transformers import SentenceTransformer

from benchmarks import ceiling
from benchmarks.bench import Bench
from benchmarks.corpora import Corpus, glosses, maude
from benchmarks.database import cloned, queued_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from benchmarks.machine import has_amx
from benchmarks.naive import Script
from benchmarks.runs import STAGES, Run, run_command
from pgqueue_embed.embedding import EmbeddingModel, resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

PART = "model"
UNIT = "chunks/s"

ScriptRun = tuple[float, int, float]
Outcome = float | ScriptRun | Run
Variants = dict[str, Callable[[], Outcome]]
Outcomes = dict[str, list[Outcome]]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure all variants on two corpora, on other records in each round."""
    sizes = bench.sizes
    for load, records, concurrencies in (
        (maude, sizes.maude_records, sizes.concurrencies),
        (glosses, sizes.glosses, (1, 2)),
    ):
        corpus = bench.corpus(load)
        if corpus is not None:
            yield _measure(bench, corpus.sample(records), concurrencies)


def _measure(bench: Bench, corpus: Corpus, concurrencies: tuple[int, ...]) -> Measured:
    bench.say(f"loading the model; {corpus.name}")
    models = Models.load()
    parts = corpus.parts(bench.rounds)
    rounds = [_variants(bench, models, part, concurrencies) for part in parts]
    in_turn = {name: _in_turn([each[name] for each in rounds]) for name in rounds[0]}
    outcomes = interleaved(bench.rounds, in_turn, on_run=bench.on_run)
    records = len(corpus.documents)
    covered = f"{records:,} records, each in one of {bench.rounds} rounds"
    return Measured(
        figures=_figures(corpus, outcomes),
        reaches=_reaches(corpus, outcomes, models.auto.precision),
        notes=[f"{corpus.name}: {covered}; device {models.auto.device}; {_tokens(models, corpus)}"],
    )


def _tokens(models: Models, corpus: Corpus) -> str:
    """Say how much the two ways of cutting give the model to read."""
    chunks = ceiling.distinct_chunks(models.auto, corpus.documents)
    worker = sum(map(models.auto.sequence_tokens, chunks)) / len(corpus.documents)
    script = models.script.tokens(corpus.documents) / len(corpus.documents)
    return f"tokens a record: worker {worker:.0f}, script {script:.0f}"


@dataclass(frozen=True, kw_only=True)
class Models:
    """The same model as each variant has it; `fp32` is `auto` where that computes in fp32."""

    auto: EmbeddingModel
    fp32: EmbeddingModel
    library: SentenceTransformer
    script: Script

    @classmethod
    def load(cls) -> Models:
        """Load all of them."""
        auto = ceiling.load_model()
        return cls(
            auto=auto,
            fp32=auto if auto.precision == "fp32" else ceiling.load_model("fp32"),
            library=ceiling.load_library(),
            script=Script(str(resolve_model(DEFAULT_MODEL).path)),
        )


def _variants(
    bench: Bench, models: Models, corpus: Corpus, concurrencies: tuple[int, ...]
) -> Variants:
    """Return what is measured in one round, over the records that are its own."""
    template = queued_database(bench.server, corpus.documents, DEFAULT_MODEL)
    auto = models.auto
    chunks = ceiling.distinct_chunks(auto, corpus.documents)
    variants: Variants = {
        f"forward {auto.precision}": ceiling.forward_rate(auto, chunks),
        "encode fp32": ceiling.encode_rate(models.library, chunks),
        "script fp32": lambda: _in_clone(bench, template, models.script.run),
    }
    for concurrency in concurrencies:
        name = f"work {auto.precision} -c {concurrency}"
        variants[name] = _work(bench, template, concurrency, auto.precision)
    if auto.precision != "fp32":
        variants["forward fp32"] = ceiling.forward_rate(models.fp32, chunks)
        variants["work fp32 -c 2"] = _work(bench, template, 2, "fp32")
    return variants


def _in_turn(measurements: Iterable[Callable[[], Outcome]]) -> Callable[[], Outcome]:
    """Return what measures something else each time that it is called."""
    following = iter(measurements)
    return lambda: next(following)()


def _in_clone(bench: Bench, template: str, run: Callable[[str], Outcome]) -> Outcome:
    with cloned(bench.server, template) as conninfo:
        return run(conninfo)


def _work(bench: Bench, template: str, concurrency: int, precision: str) -> Callable[[], Outcome]:
    arguments = ["--concurrency", str(concurrency), "--precision", precision]
    return lambda: _in_clone(bench, template, lambda conninfo: run_command(conninfo, arguments))


def _figures(corpus: Corpus, outcomes: Outcomes) -> list[Figure]:
    figures: list[Figure] = []
    for name, runs in outcomes.items():
        figures.append(_figure(corpus, name, UNIT, _rates(runs), _note(runs[0])))
        works = [run for run in runs if isinstance(run, Run)]
        if works:
            walls = [run.wall_seconds for run in works]
            note = "from the start of the command to its end"
            figures.append(_figure(corpus, f"{name}, wall", "s", walls, note))
    return figures


def _figure(corpus: Corpus, name: str, unit: str, values: list[float], note: str) -> Figure:
    return Figure(part=PART, name=name, corpus=corpus.name, unit=unit, values=values, note=note)


def _note(outcome: Outcome) -> str:
    """Say what went through, and where a claim's time went."""
    if isinstance(outcome, Run):
        total = sum(outcome.stages.values()) or 1.0
        shares = ", ".join(f"{stage} {outcome.stages[stage] / total:.1%}" for stage in STAGES)
        return f"{outcome.claims} claims: {shares}"
    if isinstance(outcome, tuple):
        return f"{outcome[0]:.1f} records/s, {outcome[1]:,} chunks of its own cut"
    return ""


def _rates(runs: list[Outcome]) -> list[float]:
    """Return chunks a second; for a worker without those that its cache had."""
    rates: list[float] = []
    for run in runs:
        if isinstance(run, Run):
            rates.append(run.computed_rate)
        else:
            rates.append(run[2] if isinstance(run, tuple) else run)
    return rates


def _record_rates(runs: list[Outcome]) -> list[float]:
    """Return records a second: two cuts of one text have unlike chunks."""
    rates: list[float] = []
    for run in runs:
        if isinstance(run, Run):
            rates.append(run.record_rate)
        elif isinstance(run, tuple):
            rates.append(run[0])
    return rates


def _reaches(corpus: Corpus, outcomes: Outcomes, precision: str) -> list[Reach]:
    best = _fastest(outcomes, f"work {precision} -c")
    fp32 = _fastest(outcomes, "work fp32 -c")
    forward = _rates(outcomes[f"forward {precision}"])
    encode, script = _rates(outcomes["encode fp32"]), _record_rates(outcomes["script fp32"])
    against_script = ratio(_record_rates(outcomes[best]), script)
    return [
        Reach(
            name=f"{best} / forward {precision} ({corpus.name})",
            measured=ratio(_rates(outcomes[best]), forward),
            target=0.90,
        ),
        Reach(
            name=f"{fp32} / encode fp32 ({corpus.name})",
            measured=ratio(_rates(outcomes[fp32]), encode),
            target=1.15,
        ),
        Reach(
            name=f"{best} / script, records ({corpus.name})",
            measured=against_script,
            target=3.5 if has_amx() else 1.2,
        ),
    ]


def _fastest(outcomes: Outcomes, prefix: str) -> str:
    """Return the variant of `work` with the highest median rate."""
    names = [name for name in outcomes if name.startswith(prefix)]
    return max(names, key=lambda name: sorted(_rates(outcomes[name]))[len(outcomes[name]) // 2])
