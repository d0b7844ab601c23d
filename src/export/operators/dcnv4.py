"""DCNv4 in the forms of DCNv3: the columns of its packed rows are gathered first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from src.export.operators.building import ints, op


def by_dcnv3(dcnv3: Callable[..., Any]) -> Callable[..., Any]:
    """The form of DCNv4 for one of DCNv3, a function of ``dcnv3.py``."""

    def dcnv4(
        input: Any,
        offset_mask: Any,
        groups: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        offset_scale: float,
        remove_center: bool,
    ) -> Any:
        """See `src.ops.dcnv4`."""
        points = kernel_size[0] * kernel_size[1] - int(remove_center)
        starts = range(0, 3 * points * groups, 3 * points)
        offsets = [start + column for start in starts for column in range(2 * points)]
        weights = [start + column for start in starts for column in range(2 * points, 3 * points)]
        return dcnv3(
            input,
            op.Gather(offset_mask, ints(*offsets), axis=3),
            op.Gather(offset_mask, ints(*weights), axis=3),
            groups,
            kernel_size,
            stride,
            padding,
            dilation,
            offset_scale,
            remove_center,
            False,
        )

    return dcnv4
