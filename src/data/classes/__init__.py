"""Names, numbers and colours of the classes of the supported datasets."""
