"""The gRPC service: handlers, messages, and interceptors around calls."""
