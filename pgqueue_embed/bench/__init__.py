"""Measures a model on this machine: the forward pass alone, and whole workers.

`run` has it all measured, each part in a process of its own (`process`), since one process may
enter Metal from one thread only. Workers work on texts of ours in a database that is made for it
and dropped afterwards, whatever happens (`throw_away`).
"""
