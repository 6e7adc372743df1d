"""The multi-task model: encoder and heads, and which clients share which of its parameters."""
