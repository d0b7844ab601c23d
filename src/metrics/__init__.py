"""Metrics with the definitions of the official code, exact on any number of ranks."""
