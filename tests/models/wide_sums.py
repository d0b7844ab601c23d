"""Float32 networks whose sums are taken in float64: what is left is the rounding of the results.

Where the official float32 run is itself further off than a stated tolerance, this tells rounding
from a difference in what is computed.
"""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

SUMMING = {
    F.linear,
    F.conv2d,
    F.conv_transpose2d,
    F.layer_norm,
    F.group_norm,
    F.batch_norm,
    F.gelu,
    F.softmax,
    F.scaled_dot_product_attention,
    torch.bmm,
    torch.matmul,
    torch.sigmoid,
    torch.softmax,
    torch.Tensor.softmax,
    torch.Tensor.sigmoid,
}


class WideSums(TorchFunctionMode):
    """Within it, functions that sum take float32 as float64 and give float32 again."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in SUMMING:
            return func(*args, **kwargs)
        result = func(*map(_widen, args), **{key: _widen(value) for key, value in kwargs.items()})
        return result.float() if any(_is_narrow(x) for x in args) else result


def _is_narrow(value):
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _widen(value):
    return value.double() if _is_narrow(value) else value
