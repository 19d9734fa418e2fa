"""Other methods on the same data and budget: rerouting, HARC, steering, a system prompt."""
