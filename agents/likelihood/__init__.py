"""Log-probabilities, entropies and values of given episodes under a policy network."""
