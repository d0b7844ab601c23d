"""Toy datasets drawn from a seed, one file per layout."""
