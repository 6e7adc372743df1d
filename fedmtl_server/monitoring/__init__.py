"""Monitoring: trackers, Prometheus metrics and traces."""
