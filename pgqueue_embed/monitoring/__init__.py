"""Monitoring: one snapshot of all pipelines and workers, and what follows from it.

`snapshot` reads it through the public views, with a viewer's rights. `pace`, `bottleneck` and
`health` are pure: they take numbers and return numbers and words. Whoever shows something, a
terminal or a program, renders a snapshot and asks the database nothing else.
"""
