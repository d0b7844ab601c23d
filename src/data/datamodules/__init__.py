"""LightningDataModules of the supported datasets."""
