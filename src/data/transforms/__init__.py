"""Builders of transforms: arguments in, a callable on PIL images out."""

from src.data.transforms.classification import eval_transform, train_transform

__all__ = ["eval_transform", "train_transform"]
