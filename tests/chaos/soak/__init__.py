"""A soak: everything at once, at random, for as long as you like; in the end the oracle is asked.

`python -m tests.chaos.soak --seconds 600`. Faults of machines and of the server come from `faults`,
what the user does from `users`, new generations from `generations`, rights that are taken away and
given back from `rights`. What must hold at every moment is in `promises`.
"""
