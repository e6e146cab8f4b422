"""A pipeline: its settings, its key, its document and its row."""
