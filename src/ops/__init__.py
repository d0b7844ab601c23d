"""Compiled operators: deformable convolution v3 (DCNv3) of InternImage.

:func:`dcnv3` is the operator; :func:`dcnv3_reference` (the oracle) and :func:`dcnv3_grid_sample`
(the benchmark baseline) compute the same in plain PyTorch. :func:`backends` tells which kernel runs
on which device, and why. This package imports nothing but torch.
"""

from ._load import OpNotBuiltError, backends
from .dcnv3 import dcnv3
from .grid_sample import dcnv3_grid_sample
from .reference import dcnv3_reference

__all__ = ["OpNotBuiltError", "backends", "dcnv3", "dcnv3_grid_sample", "dcnv3_reference"]
