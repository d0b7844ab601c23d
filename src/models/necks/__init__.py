"""Modules between a backbone and its heads."""
