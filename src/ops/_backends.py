"""What runs on each device type, for every operator of this package."""

from __future__ import annotations

import torch

from ._deformops import DEFORMOPS
from ._load import LIBRARIES

OPERATORS = ("dcnv3", "ms_deform_attn")


def backends(operator: str = "dcnv3") -> dict[str, str]:
    """Which implementation runs on each device type, and why when it is not the fastest one.

    Args:
        operator: ``"dcnv3"`` or ``"ms_deform_attn"``.

    Returns:
        ``{"cpu": ..., "cuda": ...}``. For DCNv3 ``"compiled (instruction set)"`` or ``"reference
        (reason)"``; for the attention ``"deformops"`` or ``"grid_sample (reason)"``.

    Raises:
        ValueError: If there is no such operator.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {operator!r}.")
    if operator == "ms_deform_attn":
        return DEFORMOPS.report()
    report = {device: f"reference ({reason})" for device, reason in LIBRARIES.missing.items()}
    if "cpu" not in report:
        report["cpu"] = f"compiled ({torch.ops.internimage.cpu_capability.default()})"
    return dict(sorted(report.items()))
