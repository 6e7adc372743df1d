"""The encodings that lose something: one module for each, which alone knows its bytes."""
