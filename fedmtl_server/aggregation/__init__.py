"""How updates become the next model: a pipeline of stages, without gRPC, files or clocks."""
