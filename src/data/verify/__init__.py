"""Checks of dataset folders before training: a file per layout, listed in ``LAYOUTS``."""

from src.data.verify import ade20k, imagenet

LAYOUTS = {"imagenet": imagenet, "ade20k": ade20k}
"""Layouts of ``python -m src verify``: modules with ``TREE``, ``add_arguments`` and ``run``."""
