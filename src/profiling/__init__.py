"""Measure networks: size and cost, memory of a training step, sampling locations of DCNv3."""
