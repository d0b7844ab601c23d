"""Image-text pairs in tars: scanning, index, filters, and reading of single members."""
