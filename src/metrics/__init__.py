"""Metrics: torchmetrics with the official definitions, exact over processes."""
