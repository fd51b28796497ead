"""Optimizers, minibatches, and the training of the autoencoder on given merges."""
