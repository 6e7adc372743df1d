"""Measures the architecture from the sources alone: sizes, imports, uses of `Any`. `make shape` prints the figures."""
