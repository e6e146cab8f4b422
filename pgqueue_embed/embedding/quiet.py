"""Keep the libraries below from printing bars and advice on a worker's screen."""

from __future__ import annotations

import logging
import os


def quieten() -> None:
    """Silence progress bars and warnings of transformers; call before loading a model."""
    # Said aloud, tokenizers neither warns nor gives up its threads; we never fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
