"""Toy scenes drawn from a seed, and their layouts on disk."""
