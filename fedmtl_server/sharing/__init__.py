"""Adaptive sharing: layers change their scope during a run."""
