"""Everything on disk: updates, checkpoints and the history."""
