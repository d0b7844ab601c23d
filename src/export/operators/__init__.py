"""Operators that ONNX lacks, as graphs of standard ONNX operators.

- ``dcnv3.py`` and ``attention.py``: DCNv3 and multi-scale deformable attention, each in up to three
  forms, see `translations`.
- ``dcnv4.py``: DCNv4 by the forms of DCNv3.
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
from src.export.operators import attention, dcnv3
from src.export.operators.dcnv4 import by_dcnv3
from src.export.operators.pooling import adaptive_avg_pool2d

_FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "deformconv": (dcnv3.deformconv, attention.gather),
    "gridsample": (dcnv3.gridsample, attention.gridsample),
    "gather": (dcnv3.gather, attention.gather),
}


def translations(dcn: str) -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of `torch.onnx.export`.

    Args:
        dcn: The form of the two operators, one of `src.export.files.OPSETS`.
    """
    operator, attended = _FORMS[dcn]
    return {
        torch.ops.internimage.dcnv3.default: operator,
        torch.ops.internimage.dcnv4.default: by_dcnv3(operator),
        torch.ops.internimage.ms_deform_attn.default: attended,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
        torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }
