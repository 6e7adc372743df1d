"""What survives: updates, checkpoints and the history."""
