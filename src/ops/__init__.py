"""Operators: deformable convolution v3 (DCNv3) and multi-scale deformable attention.

:func:`dcnv3` and :func:`ms_deform_attn` are the operators. :func:`dcnv3_reference` and
:func:`ms_deform_attn_reference` (references for tests) and :func:`dcnv3_grid_sample` (the baseline
of the benchmark) compute the same in plain PyTorch. :func:`backends` returns which implementation
is used on each device, and why. This package imports only torch, ``deformops`` if it is installed,
and Triton on a GPU.
"""

from ._backends import backends
from ._load import OpNotBuiltError
from .dcnv3 import dcnv3
from .grid_sample import dcnv3_grid_sample
from .ms_deform_attn import ms_deform_attn
from .ms_deform_attn_reference import ms_deform_attn_reference
from .reference import dcnv3_reference

__all__ = [
    "OpNotBuiltError",
    "backends",
    "dcnv3",
    "dcnv3_grid_sample",
    "dcnv3_reference",
    "ms_deform_attn",
    "ms_deform_attn_reference",
]
