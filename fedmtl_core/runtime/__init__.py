"""What a process needs for itself: its command line, checks before a start, tracing, sockets."""
