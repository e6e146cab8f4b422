"""What became of each record, and of each commit."""
