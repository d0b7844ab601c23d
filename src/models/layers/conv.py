"""Convolutions and linear layers of the heads, each with the start values of the official one.

Start values live in ``reset_parameters`` of the layer that owns the weights, so a network made on
the meta device gets the same start after ``to_empty`` as one made on a real device. Biases start
at 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from src.models.weights.match import Match

Start = Literal["kaiming", "xavier", "lecun"] | float
"""Kaiming normal for ReLU (fan out), Xavier uniform, LeCun uniform, or the std of a normal."""


def set_start(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, start: Start) -> None:
    """Fill weight and bias of a layer with its start values."""
    if start == "kaiming":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif start == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif start == "lecun":
        nn.init.kaiming_uniform_(layer.weight, a=1.0)
    else:
        nn.init.normal_(layer.weight, std=start)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Conv2d(nn.Conv2d):
    """Convolution of stride 1 that keeps the size of the map and starts as asked.

    Args:
        in_channels: Input width.
        out_channels: Output width.
        kernel_size: Odd side of the kernel.
        start: Start values.
        bias: Whether to add a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, start: Start, bias: bool = True
    ) -> None:
        self.start = start
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    def reset_parameters(self) -> None:
        """Set the start values."""
        set_start(self, self.start)


class Upsample2x(nn.ConvTranspose2d):
    """Transposed 2x2 convolution of stride 2: twice the side, Kaiming start."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def reset_parameters(self) -> None:
        """Set the start values."""
        set_start(self, "kaiming")


class Linear(nn.Linear):
    """Linear layer that starts as asked."""

    def __init__(self, in_features: int, out_features: int, start: Start) -> None:
        self.start = start
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Set the start values."""
        set_start(self, self.start)


class ClassOutput:
    """A layer whose outputs belong to classes: weights for other classes do not fit it."""

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
    """Convolution to one map per class."""


class ClassLinear(ClassOutput, Linear):
    """Linear layer to one or more values per class."""


class ConvUnit(nn.Module):
    """Convolution, optional BatchNorm, optional ReLU; parameters ``conv.*`` and ``bn.*``.

    With BatchNorm the convolution has no bias.

    Args:
        in_channels: Input width.
        out_channels: Output width.
        kernel_size: Odd side of the kernel.
        start: Start values of the convolution.
        norm: Whether to normalise over the batch.
        relu: Whether to end with a ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        start: Start = "kaiming",
        norm: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, start, bias=not norm)
        self.bn = nn.BatchNorm2d(out_channels) if norm else None
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C', H, W)``."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        out: Tensor = self.act(x)
        return out
