"""InternImage on PyTorch Lightning: operator, models, data, tasks and command line."""
