"""The rounds of a run: their rules, the engine that decides their steps, and their reports."""
