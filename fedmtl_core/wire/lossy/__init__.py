"""The lossy encodings. The bytes of each encoding are known to one module only."""
