"""Layers that move from one scope to another while a run goes on."""
