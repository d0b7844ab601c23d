"""Heads: modules that turn backbone maps into predictions."""
