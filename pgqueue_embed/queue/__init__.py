"""Work items: queued, captured, claimed, and given up on."""
