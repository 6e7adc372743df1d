"""The model on its way out, and updates on their way in: bytes, without gRPC."""
