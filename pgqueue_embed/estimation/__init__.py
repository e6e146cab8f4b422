"""Estimates what a pipeline will take, from a sample of its source, before anything is made."""
