"""Benchmarks of pgembed's speed and cost: `make bench`. Nothing here is a test with a clock."""
