"""The networks of the autoencoder, level-wise traversal and the file of weights."""
