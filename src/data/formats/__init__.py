"""File formats: COCO json, run-length codes, label maps, image files."""
