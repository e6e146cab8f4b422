"""Checks that a model's weights are those of the network that its configuration names."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.errors import ModelError

# Tables that a network computes itself; old files hold copies of them.
_COMPUTED = ("position_ids", "inv_freq", "masked_bias")
_SAME = 1e-6
# What turns a network's output into words or classes has no part in a vector.
_OF_A_HEAD = re.compile(
    r"(^|\.)(\w*(head|classif|predict|pooler|decoder|logit|loss)\w*|cls|scores?|vocab_\w+"
    r"|(qa|embed|proj)_out\w*|generator|discriminator)\b"
)

_loading = threading.Lock()

Report = tuple[Any, dict[str, Any]]


@contextmanager
def loading_reports() -> Iterator[list[Report]]:
    """Collect every network that transformers loads meanwhile, with what did not fit."""
    from transformers import PreTrainedModel

    reports: list[Report] = []
    own = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(kind: Any, *arguments: Any, **options: Any) -> Any:
        # Asked for inside the library, where no argument of sentence-transformers reaches. Weights
        # of another shape are refused here, by name.
        asked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded = own.__func__(kind, *arguments, **(options | asked))
        reports.append(loaded)
        return loaded if options.get("output_loading_info") else loaded[0]

    with _loading:
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)
        try:
            yield reports
        finally:
            PreTrainedModel.from_pretrained = own


def refuse_random_weights(
    network: Any,
    reports: Sequence[Report],
    name: str,
    embed: Callable[[], NDArray[np.float32]],
) -> None:
    """Raise ModelError where weights are missing that vectors depend on, or have no place.

    A missing weight is random in every process; whether a vector depends on it is tried out, since
    many models come without a pooler that they never use. Weights within the parts of the network
    that have no place there say that it is another one; for others see `stray_weights`.
    """
    for model, report in reports:
        _refuse_other_shapes(model, report, name)
        homeless = sorted(key for key in report["unexpected_keys"] if _is_own(model, key))
        if homeless:
            raise ModelError(
                f"model {name} is not what its configuration says: {type(model).__name__} has no"
                f" place for the weight {homeless[0]} ({len(homeless)} in all)"
            )
        missing = sorted(report["missing_keys"])
        if missing and _matter(model, missing, embed):
            raise ModelError(
                f"model {name} lacks weights of {type(model).__name__}: {missing[0]}"
                f" ({len(missing)} in all); they would be random in every process"
            )


def stray_weights(reports: Sequence[Report]) -> tuple[str, ...]:
    """Return the weights that no network took and that are not those of a head."""
    return tuple(
        sorted(
            key
            for model, report in reports
            for key in report["unexpected_keys"]
            if not (_is_own(model, key) or key.endswith(_COMPUTED) or _OF_A_HEAD.search(key))
        )
    )


def _refuse_other_shapes(model: Any, report: dict[str, Any], name: str) -> None:
    for key, found, wanted in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model {name} is not what its configuration says: the weight {key} has shape"
            f" {tuple(found)}, and {type(model).__name__} takes {tuple(wanted)}"
        )


def _is_own(model: Any, key: str) -> bool:
    key = key.removeprefix(f"{model.base_model_prefix}.")
    return not key.endswith(_COMPUTED) and key.partition(".")[0] in dict(model.named_children())


def _matter(model: Any, missing: Sequence[str], embed: Callable[[], NDArray[np.float32]]) -> bool:
    """Tell whether vectors change with the missing weights."""
    import torch

    before = embed()
    tensors = model.state_dict()
    places = [tensors[key] for key in missing if key in tensors]
    kept = [place.clone() for place in places]
    with torch.no_grad():
        for place in places:
            if place.is_floating_point():
                place.normal_()
        after = embed()
        for place, old in zip(places, kept, strict=True):
            place.copy_(old)
    return not bool(np.allclose(before, after, atol=_SAME))
