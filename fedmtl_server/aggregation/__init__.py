"""Aggregation of a round's updates: a pipeline of stages, without gRPC, files or clocks."""
