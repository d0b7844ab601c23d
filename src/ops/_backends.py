"""Implementation used on each device type, for all operators of this package."""

from __future__ import annotations

import torch

from ._deformops import DEFORMOPS
from ._load import LIBRARIES, LIBRARY_FILES, triton_version
from .dcnv4 import has_kernel

OPERATORS = ("dcnv3", "dcnv4", "ms_deform_attn")


def backends(operator: str = "dcnv3") -> dict[str, str]:
    """Implementation used on each device type, and the reason if it is not the fastest one.

    Args:
        operator: ``"dcnv3"``, ``"dcnv4"`` or ``"ms_deform_attn"``.

    Returns:
        ``{"cpu": ..., "cuda": ...}``, also for device types that this machine does not have. For
        DCNv3, with any dtype, ``"compiled (instruction set or architectures)"``, ``"triton
        (version; reason why not compiled)"`` or ``"reference (reason)"``; for DCNv4 the same, with
        ``"dcnv3: "`` before it where rows are copied for the kernels of DCNv3; for the attention
        ``"deformops"`` or ``"grid_sample (reason)"``.

    Raises:
        ValueError: If there is no such operator.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {operator!r}.")
    if operator == "ms_deform_attn":
        return DEFORMOPS.report()
    report = {device_type: _describe_dcnv3(device_type) for device_type in LIBRARY_FILES}
    if operator == "dcnv3":
        return report
    return {
        device_type: text if has_kernel(device_type) else f"dcnv3: {text}"
        for device_type, text in report.items()
    }


def _describe_dcnv3(device_type: str) -> str:
    kernel = LIBRARIES.kernel(device_type)
    if kernel == "compiled":
        is_cpu = device_type == "cpu"
        operators = torch.ops.internimage
        about = operators.cpu_capability if is_cpu else operators.cuda_architectures
        return f"compiled ({about.default()})"
    reason = LIBRARIES.missing[device_type]
    if kernel == "triton":
        return f"triton ({triton_version()}; compiled: {reason})"
    if device_type == "cuda" and LIBRARIES.no_triton not in (None, reason):
        reason += f"; {LIBRARIES.no_triton}"
    return f"reference ({reason})"
