"""Map-style PyTorch datasets, independent of Lightning."""

from src.data.datasets.image_folder import ImageFilesDataset, ImageFolderDataset

__all__ = ["ImageFilesDataset", "ImageFolderDataset"]
