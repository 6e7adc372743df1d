"""How updates become the next model: arithmetic, without gRPC, files or clocks."""
