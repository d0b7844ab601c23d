"""Operators: deformable convolution v3 and v4 (DCNv3, DCNv4), multi-scale deformable attention.

:func:`dcnv3`, :func:`dcnv4` and :func:`ms_deform_attn` are the operators. :func:`dcnv3_reference`,
:func:`dcnv4_reference` and :func:`ms_deform_attn_reference` (references for tests) and
:func:`dcnv3_grid_sample` (the baseline of the benchmark) compute the same in plain PyTorch.
:func:`dcnv4_columns` is the width of the packed rows that DCNv4 reads. :func:`backends` returns
which implementation is used on each device, and why. This package imports only torch, ``deformops``
if it is installed, and Triton on a GPU.
"""

from ._backends import backends
from ._load import OpNotBuiltError
from .dcnv3 import dcnv3
from .dcnv4 import dcnv4, dcnv4_columns, dcnv4_reference
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
    "dcnv4",
    "dcnv4_columns",
    "dcnv4_reference",
    "ms_deform_attn",
    "ms_deform_attn_reference",
]

__version__ = "0.1.0"
"""Version of the package ``dcnv3_ops``, whose build reads it here."""
