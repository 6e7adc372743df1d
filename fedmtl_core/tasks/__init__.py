"""Tasks: their definition, the computations of their types, and their evaluation."""
