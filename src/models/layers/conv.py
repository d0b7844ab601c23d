"""Convolutions of the necks and heads, with the initial values of the official code.

Biases are zero initially. ``linear.py`` says why ``reset_parameters`` initialises.
"""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn

from src.models.layers.linear import Init, Linear, init_layer
from src.models.weights.match import Match


class Conv2d(nn.Conv2d):
    """Convolution of stride 1 that keeps the size of the feature map.

    Args:
        in_channels: Input width.
        out_channels: Output width.
        kernel_size: Odd side of the kernel.
        init: Initial weights.
        bias: Whether to add a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, init: Init, bias: bool = True
    ) -> None:
        self.init = init
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    def reset_parameters(self) -> None:
        """Set the initial values."""
        init_layer(self, self.init)


class Upsample2x(nn.ConvTranspose2d):
    """Transposed 2x2 convolution of stride 2, which doubles both sides; Kaiming initialisation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def reset_parameters(self) -> None:
        """Set the initial values."""
        init_layer(self, "kaiming")


class ClassOutput:
    """Mixin of layers with one or more outputs per class.

    Weights for another number of classes do not fit such a layer; it then keeps its initial values.
    """

    counted: ClassVar[str] = "class outputs"
    """What the rows of the weight are called in messages."""

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Keep the initial values where a file has other classes."""
        layer = cast("nn.Linear", self)
        own = {f"{prefix}{key}": value for key, value in layer.state_dict().items()}
        given = {key: match.state[key] for key in own if key in match.state}
        weight = given.get(f"{prefix}weight")
        if weight is None or weight.shape[1:] != layer.weight.shape[1:]:
            return
        if len(given) == len(own) and len(weight) != len(layer.weight):
            match.keep_initial(own)
            match.note(
                f"{match.source} has {len(weight)} {self.counted}, the network"
                f" {len(layer.weight)}: {prefix.removesuffix('.')} is randomly initialised."
            )


class ClassConv2d(ClassOutput, Conv2d):
    """Convolution to one score map per class."""

    counted: ClassVar[str] = "classes"


class ClassLinear(ClassOutput, Linear):
    """Linear layer to one or more values per class."""


class ConvUnit(nn.Module):
    """Convolution, optional BatchNorm, optional ReLU; parameters ``conv.*`` and ``bn.*``.

    With BatchNorm the convolution has no bias.

    Args:
        in_channels: Input width.
        out_channels: Output width.
        kernel_size: Odd side of the kernel.
        init: Initial weights of the convolution.
        norm: Whether to normalise over the batch.
        relu: Whether to end with a ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        init: Init = "kaiming",
        norm: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, init, bias=not norm)
        self.bn = nn.BatchNorm2d(out_channels) if norm else None
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C', H, W)``."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        out: Tensor = self.act(x)
        return out
