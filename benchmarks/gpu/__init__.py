"""What needs a GPU, measured within a budget of minutes: ``python -m benchmarks.gpu``."""
