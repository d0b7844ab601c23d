"""Transforms of the official recipes for training and evaluation."""

from src.data.transforms.batches import Erasing, Normalization
from src.data.transforms.classification import EvalTransform, TrainTransform

__all__ = ["Erasing", "EvalTransform", "Normalization", "TrainTransform"]
