"""Other methods on the same data and budget: rerouting, steering, a system prompt."""
