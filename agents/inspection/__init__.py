"""What a trained learner does: traces of episodes, embeddings, probes of labels."""
