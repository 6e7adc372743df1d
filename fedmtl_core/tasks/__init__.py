"""Tasks: what they are, what their types compute, how their results are measured."""
