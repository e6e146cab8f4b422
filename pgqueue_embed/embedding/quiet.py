"""Keep the libraries below from printing bars and advice on a worker's screen, and read it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pgqueue_embed.errors import ModelError

_LIBRARIES = ("transformers", "sentence_transformers")
# The library falls back to another attention or activation than the model was trained with.
_WRONG_VECTORS = re.compile(
    r"may not support this parameter|silently ignored|falling back to the default activation"
)
# Said of what is looked at elsewhere, or of what has no part in a vector.
_HARMLESS = re.compile(
    r"LOAD REPORT|newly initialized|were not used when|No sentence-transformers model found"
    r"|created with Sentence Transformers version|is deprecated|deprecated and will be removed"
    r"|Default prompt name is set|_token_id must be|attention_window|README"
    r"|longer than the specified maximum"
)


class Heard(logging.Handler):
    """Remembers what the libraries warn of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._texts[record.getMessage().strip().split("\n")[0]] = None

    def notes(self, name: str) -> tuple[str, ...]:
        """Return what a person should know; raises ModelError if the vectors would be wrong."""
        for text in self._texts:
            if _WRONG_VECTORS.search(text):
                raise ModelError(f"model {name} would give wrong vectors here: {text}")
        return tuple(text for text in self._texts if not _HARMLESS.search(text))


@contextmanager
def hear() -> Iterator[Heard]:
    """Silence progress bars and warnings while a model is loaded, and remember the warnings."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    heard = Heard()
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [heard], False
        logger.setLevel(logging.WARNING)
    try:
        yield heard
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(logging.ERROR)
