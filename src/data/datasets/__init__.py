"""Map-style PyTorch datasets, independent of Lightning."""
