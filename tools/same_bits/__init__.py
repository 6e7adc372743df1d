"""Compares the results of two revisions bit by bit: it runs the same small federations and compares all checkpoints."""
