"""Errors of reconstruction, agreement of trees, and what embeddings say of labels."""
