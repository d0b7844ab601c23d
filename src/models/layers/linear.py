"""Linear layers and the initial values of the official code.

Each module that owns parameters initialises them in ``reset_parameters``, so a network made on the
meta device has the same initial values after ``to_empty`` as one made on a real device.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Init = Literal["kaiming", "xavier", "lecun", "trunc_normal", "zeros"] | float
"""Initial weights: Kaiming normal for ReLU (fan out), Xavier uniform, LeCun uniform, a truncated
normal of std 0.02, zeros, or a normal of the given std."""

Xavier = Literal["normal", "uniform"]
"""The two Xavier distributions; Mask2Former uses the normal one, DINO the uniform one."""

XAVIER = {"normal": nn.init.xavier_normal_, "uniform": nn.init.xavier_uniform_}


def init_layer(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, init: Init) -> None:
    """Set the initial weight of a layer, and its bias to zero."""
    if init == "kaiming":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif init == "lecun":
        nn.init.kaiming_uniform_(layer.weight, a=1.0)
    elif init == "trunc_normal":
        nn.init.trunc_normal_(layer.weight, std=0.02)
    elif init == "zeros":
        nn.init.zeros_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=init)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Linear(nn.Linear):
    """Linear layer with given initial weights and zero bias.

    Args:
        in_features: Input width.
        out_features: Output width.
        init: Initial weights.
        bias: Whether to add a bias.
    """

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True) -> None:
        self.init = init
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        init_layer(self, self.init)


class XavierLinear(nn.Linear):
    """Linear layer with Xavier weights and PyTorch's own bias, as in the official transformers.

    Args:
        in_features: Input width.
        out_features: Output width.
        xavier: Distribution of the initial weights.
        bias: Whether to add a bias.
    """

    def __init__(
        self, in_features: int, out_features: int, xavier: Xavier = "normal", bias: bool = True
    ) -> None:
        self.xavier = xavier
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        super().reset_parameters()
        XAVIER[self.xavier](self.weight)
