"""Transforms of the official recipes for training and evaluation."""

from src.data.transforms.classification import eval_transform, train_transform

__all__ = ["eval_transform", "train_transform"]
