"""Figures of the architecture, measured from the sources alone: sizes, imports, `Any`. `make shape` prints them."""
