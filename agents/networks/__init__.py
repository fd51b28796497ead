"""Policy networks: scores of ordered pairs of tokens, with or without context."""
