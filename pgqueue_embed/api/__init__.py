"""The Python interface: a thin face of the same core as the command line; see docs/python.md."""
