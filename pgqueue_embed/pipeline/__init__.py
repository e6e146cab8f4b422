"""What a pipeline is: its settings, its key, its document and its row."""
