"""Results that the frozen model computes once: clips' embeddings, representations, states of the lower
layers."""
