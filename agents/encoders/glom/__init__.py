"""GLOM (Hinton 2021): tokens as columns of levels that iterate until they agree."""
