"""Convolution with packed weights, for inference on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def can_pack(dtype: torch.dtype) -> bool:
    """Whether PyTorch has packed products and convolutions of this dtype on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedConv:
    """Convolution of a channels-last feature map, in the layout of oneDNN where PyTorch has it.

    Args:
        conv: Convolution with zero padding, without dilation and groups.
        dtype: float32 or bfloat16.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.weight = conv.weight.detach().to(dtype, copy=True)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype, copy=True)
        self.stride, self.padding = list(conv.stride), [int(p) for p in conv.padding]
        self.channels = conv.out_channels
        self.is_packed = can_pack(dtype)
        if self.is_packed:
            self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.to_mkldnn(), self.padding, self.stride, [1, 1], 1
            )

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H', W', C')``."""
        x = x.permute(0, 3, 1, 2)
        if self.is_packed:
            x = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, [1, 1], 1, "none", [], ""
            )
        else:
            x = torch.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return x.permute(0, 2, 3, 1).contiguous()
