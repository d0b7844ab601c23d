"""Preparation of public datasets."""
