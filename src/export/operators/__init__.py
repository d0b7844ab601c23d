"""Operators that ONNX lacks, as graphs of standard ONNX operators, or as nodes of our library.

- ``dcnv3.py`` and ``attention.py``: DCNv3 and multi-scale deformable attention, each in up to three
  forms, see `translations`.
- ``dcnv4.py``: DCNv4 by the forms of DCNv3.
- ``native.py``: nodes of our library for ONNX Runtime.
- ``pooling.py``: adaptive average pooling.
- ``building.py``: what they share.

The exporter calls these functions with symbolic values in place of tensors; arguments that are
annotated as numbers are attributes of the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import src.ops  # noqa: F401  registers the operators
from src.export.operators import attention, dcnv3, native
from src.export.operators.dcnv4 import by_dcnv3
from src.export.operators.pooling import adaptive_avg_pool2d

_FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "deformconv": (dcnv3.deformconv, by_dcnv3(dcnv3.deformconv), attention.gather),
    "gridsample": (dcnv3.gridsample, by_dcnv3(dcnv3.gridsample), attention.gridsample),
    "gather": (dcnv3.gather, by_dcnv3(dcnv3.gather), attention.gather),
    "native": (native.dcnv3, native.dcnv4, attention.gather),
}


def translations(dcn: str) -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of `torch.onnx.export`.

    Args:
        dcn: The form of the operators, one of `src.export.files.OPSETS`.
    """
    sampled, packed, attended = _FORMS[dcn]
    return {
        torch.ops.internimage.cpu_block.default: native.cpu_block,
        torch.ops.internimage.dcnv3.default: sampled,
        torch.ops.internimage.dcnv4.default: packed,
        torch.ops.internimage.ms_deform_attn.default: attended,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
        torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }
