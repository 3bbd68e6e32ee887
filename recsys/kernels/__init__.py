"""Pure functions on tensors, one folder an operation: a reference, and faster forms of it."""
