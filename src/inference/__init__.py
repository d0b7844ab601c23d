"""Predict on images from Python, as ``python -m src predict`` does on files."""

from src.data.formats.image_files import find_images
from src.inference.images import ImageSource, load_image, split_batch
from src.inference.predictor import Predictor
from src.inference.results import Classification, Detection, Prediction, Segmentation

__all__ = [
    "Classification",
    "Detection",
    "ImageSource",
    "Prediction",
    "Predictor",
    "Segmentation",
    "find_images",
    "load_image",
    "split_batch",
]
