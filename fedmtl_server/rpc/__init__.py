"""gRPC: the calls, and tensors on their way in and out."""
