"""Terms of given episodes under a policy network: log-probabilities, entropies and values."""
