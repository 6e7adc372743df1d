"""The wire format: layouts of tensors, encodings, chunks, and the contract's messages."""
