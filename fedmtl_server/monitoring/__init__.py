"""Who is told of a run: trackers, Prometheus and OpenTelemetry."""
