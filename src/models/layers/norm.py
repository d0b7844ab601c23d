"""LayerNorm that reads and writes the autocast dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.models.layers.precision import autocast_dtype, without_autocast


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose result under autocast has the autocast dtype instead of float32.

    Mean, variance and normalisation are float32 inside the kernel, as everywhere in PyTorch; only
    what it reads and writes has 16 bits. PyTorch's own layer writes float32 under autocast, which
    every following layer casts again. Without autocast both layers are the same.
    """

    float32_output = False
    """Under autocast, return float32 like PyTorch's own layer; see `set_float32_norms`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        device_type = x.device.type
        dtype = autocast_dtype(device_type)
        if dtype is None or x.dtype == torch.float64:
            return super().forward(x)
        if self.float32_output:
            dtype = torch.float32
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if device_type != "cpu" or weight.dtype != torch.float32:
            # Only the CPU's kernel takes float32 parameters beside 16-bit values.
            weight, bias = weight.to(dtype), bias.to(dtype)
        with without_autocast(device_type):
            return torch.native_layer_norm(
                x.to(dtype), self.normalized_shape, weight, bias, self.eps
            )[0]


def set_float32_norms(network: nn.Module, enable: bool = True) -> None:
    """Switch float32 output under autocast on or off for every `LayerNorm` of a network."""
    for module in network.modules():
        if isinstance(module, LayerNorm):
            module.float32_output = enable
