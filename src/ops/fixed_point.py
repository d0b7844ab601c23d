"""Order-independent sums on a GPU, with floats as multiples of a unit in 64-bit integers.

Integer addition is exact, so the result of atomic additions does not depend on their order. Under
``torch.use_deterministic_algorithms``, the backward pass of DCNv3 accumulates the input gradient
this way if several blocks add to the same feature map. The unit is chosen from the data, so that no
sum can overflow; the error of a sum is at most its number of terms times 2^-62 of the largest
possible sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import Window


def fixed_point_unit(grad: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Power of two that represents 1.0, as a float64 scalar on the device of ``grad``.

    A term is at most ``max|grad| * max|weight|``, and an element has at most four terms from every
    sampling point of its image and group. The result is NaN, which makes the whole gradient NaN, if
    ``grad`` or ``mask`` is not finite; this does not synchronise the device.
    """
    if grad.numel() == 0:
        return grad.new_ones((), dtype=torch.float64)
    largest = grad.abs().amax().double() * (4 * mask.shape[1] * mask.shape[2] * window.points)
    if not window.mask_softmax:
        largest = largest * mask.abs().amax().double()
    exponent = torch.frexp(largest).exponent.clamp(min=-900).double()
    unit = torch.exp2(62 - exponent)
    return torch.where(largest.isfinite(), unit, torch.nan)


def from_fixed_point(sums: Tensor, unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert the sums to floats."""
    return (sums.double() / unit).to(dtype)
