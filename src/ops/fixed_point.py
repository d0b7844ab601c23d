"""Order-independent sums on a GPU: floats as multiples of a unit in 64-bit integers.

Integer additions commute exactly, so atomic additions of them give the same bits in every order.
Under ``torch.use_deterministic_algorithms``, the backward of DCNv3 adds up the input gradient this
way where several blocks add to a feature map. The unit is chosen from the data, so that no sum can
overflow; the error of a sum is below its number of addends times 2^-62 of the largest possible sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import Window


def fixed_point_unit(grad: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Power of two that one is in integers, a float64 scalar on the device of ``grad``.

    An addend is at most ``max|grad| * max|weight|``, and an element gets at most four from every
    sampling point of its image and group. NaN, which makes the whole gradient NaN, if ``grad`` or
    ``mask`` is not finite; finding out does not wait for the device.
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
    """The sums as floats."""
    return (sums.double() / unit).to(dtype)
