"""A pipeline from its creation to its removal."""
