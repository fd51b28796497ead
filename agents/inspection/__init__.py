"""Inspection of a trained learner: traces of episodes, embeddings, probes of labels."""
