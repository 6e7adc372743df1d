"""Transfers the model to clients and updates to the server, as bytes and without gRPC."""
