"""Plain torch datasets: files in, samples out. No Lightning here."""

from src.data.datasets.image_folder import ImageFilesDataset, ImageFolderDataset

__all__ = ["ImageFilesDataset", "ImageFolderDataset"]
