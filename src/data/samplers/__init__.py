"""Samplers that distribute a dataset over ranks and group images by aspect ratio."""
