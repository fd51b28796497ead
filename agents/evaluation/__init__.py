"""Held-out scores of a policy and its autoencoder, and pictures of what they do."""
