"""Readers of files from strangers, fed with thousands of mutated files."""
