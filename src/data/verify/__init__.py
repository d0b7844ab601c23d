"""Checks of dataset folders before training."""
