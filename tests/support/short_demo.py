"""The demonstration on a tenth of its corpus: `python -m tests.support.short_demo demo`."""

from __future__ import annotations

from pydoc_data import topics

from pgqueue_embed.__main__ import main

# What its questions, and those of its tests, are about.
TOPICS = (
    *("calls", "class", "context-managers", "exceptions", "execmodel", "function"),
    *("operator-summary", "try", "with"),
)

if __name__ == "__main__":
    vars(topics)["topics"] = {name: topics.topics[name] for name in TOPICS}
    main()
