"""Samplers that divide a dataset among ranks and group images by shape."""
