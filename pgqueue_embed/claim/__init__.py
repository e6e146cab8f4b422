"""One claim, from reading its records to their commit."""
