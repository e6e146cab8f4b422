"""Search by meaning, and the indexes that make it quick."""
