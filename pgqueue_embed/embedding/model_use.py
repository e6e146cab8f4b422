"""Uses of a model (prompts, pooling, control tokens) that are not left to its files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelUse:
    """Prompts are the model's own where None, and "" for none at all.

    With ``control_tokens`` texts may spell the model's control tokens, as those that it was trained
    with did; otherwise they are read as text. ``pooling`` says how the vectors of tokens become
    one, for a model whose files do not; None leaves it to the library.
    """

    document_prompt: str | None = None
    query_prompt: str | None = None
    control_tokens: bool = False
    pooling: str | None = None


AS_ITS_FILES_SAY = ModelUse()
