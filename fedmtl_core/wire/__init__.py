"""What travels: layouts of tensors, encodings, chunks, and the contract's messages."""
