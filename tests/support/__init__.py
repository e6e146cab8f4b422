"""What tests of several kinds share: corpora, a fake device, pipelines, and the oracle."""
