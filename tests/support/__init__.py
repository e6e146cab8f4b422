"""Support for several kinds of tests: corpora, a fake device, pipelines, and the oracle."""
