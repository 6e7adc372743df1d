"""Process infrastructure: command line, checks before the start, tracing, connections."""
