"""The algorithms, and the components that they are made of."""
