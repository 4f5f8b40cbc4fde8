"""Checkpoint formats: each is a function from our names of parameters to places in its files."""
