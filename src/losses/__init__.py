"""Training losses that PyTorch and timm do not have."""
