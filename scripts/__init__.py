"""Programs that the developers of pgembed run."""
