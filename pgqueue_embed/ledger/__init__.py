"""The state of each record, and the row of each commit."""
