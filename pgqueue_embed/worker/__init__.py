"""The worker processes, and what they run."""
