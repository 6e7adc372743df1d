"""Who takes part in a round, when it ends, and what is written down of it."""
