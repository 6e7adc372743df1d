"""The multi-task model: encoder and heads, and the sharing of its parameters among clients."""
