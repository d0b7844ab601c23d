"""Names, ids and colours of the classes of the supported datasets."""
