"""Parts of the InternImage backbone: stem, block, downsampling.

Source: "InternImage", CVPR 2023 (arXiv 2211.05778), figure 4; the block modes are those of the
official code. Feature maps are channels-last, ``(N, H, W, C)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.layers import (
    MLP,
    ChannelsLastBatchNorm,
    add_branch,
    layer_norm,
)
from src.models.internimage.parts import can_split, in_parts
from src.models.layers.channels_last import conv_nhwc
from src.models.layers.compilation import RepeatedPart
from src.models.layers.norm import norm_fork, norm_gelu
from src.models.layers.precision import autocast_dtype, parameters_cast
from src.models.weights.match import Match

Layer = Callable[[Tensor], Tensor]
"""Layer ``(N, H, W, C) -> (N, H, W, C)``."""


class Stem(nn.Module):
    """Two strided 3x3 convolutions: image ``(N, 3, H, W)`` to ``(N, H/4, W/4, C)``.

    Sides are halved twice rounding up. The result is not activated.

    Args:
        in_chans: Channels of the image.
        channels: Output width ``C``, even.
    """

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1)
        self.norm1 = layer_norm(channels // 2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = layer_norm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, 3, H, W) -> (N, ceil(H/4), ceil(W/4), C)``.

        Raises:
            UserError: If the image has another number of channels.
        """
        check_channels(image, self.conv1.in_channels)
        if not can_split(image, self):
            return self._run(image)
        is_cast = image.dtype == torch.float32  # by autocast, which leaves float64 as it is
        dtype = (autocast_dtype("cpu") if is_cast else None) or image.dtype
        values = self.conv1.out_channels * image.shape[2] * image.shape[3] // 4

        def run(part: Tensor) -> tuple[Tensor]:
            # In one pass, where `_run` and autocast would make a copy each.
            return (self._run(part.to(dtype, memory_format=torch.channels_last)),)

        return in_parts(image, values * dtype.itemsize, run)[0]

    def _run(self, image: Tensor) -> Tensor:
        # Copying three channels here keeps every later feature map channels-last without a copy.
        x = image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (N, H, W, 3)
        x = norm_gelu(self.norm1, self.act, conv_nhwc(self.conv1, x))
        out: Tensor = self.norm2(conv_nhwc(self.conv2, x))
        return out


def check_channels(image: Tensor, expected: int) -> None:
    """Raise `UserError` if an image ``(N, C, H, W)`` has another number of channels."""
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not is_traced and image.shape[1] != expected:
        raise UserError(
            f"The network expects {expected} image channels (in_chans), got {image.shape[1]};"
            " set in_chans to the channels of the images."
        )


class Downsample(nn.Module):
    """Strided 3x3 convolution without bias and a norm: half the side, twice the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = layer_norm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, ceil(H/2), ceil(W/2), 2C)``."""
        out: Tensor = self.norm(conv_nhwc(self.conv, x))
        return out


@dataclass(frozen=True)
class BlockOptions:
    """Options shared by all blocks of a backbone.

    Attributes:
        mlp_ratio: Hidden width of the MLP over the channels.
        drop_rate: Dropout in the MLP, in [0, 1).
        mlp_fc2_bias: Whether the second layer of the MLP has a bias.
        layer_scale: Initial value of the learned channel scales; ``None`` means no scales.
        post_norm: Norm after the branch instead of before.
        res_post_norm: Second norm after the branch (InternImage-H).
    """

    mlp_ratio: float = 4.0
    drop_rate: float = 0.0
    mlp_fc2_bias: bool = True
    layer_scale: float | None = None
    post_norm: bool = False
    res_post_norm: bool = False


class Block(RepeatedPart):
    """Spatial mixer and MLP, each with a residual connection.

    The residual branch of ``f`` is, in this order of precedence:

    ========================  =================================
    ``layer_scale`` set       ``gamma * norm(f(x))`` if ``post_norm``, else ``gamma * f(norm(x))``
    ``post_norm``             ``norm(f(x))``
    ``res_post_norm``         ``res_post_norm(f(norm(x)))``
    otherwise                 ``f(norm(x))``
    ========================  =================================

    Args:
        channels: Width of the feature map.
        mixer: Layer ``(N, H, W, C) -> (N, H, W, C)`` of the first branch, such as `DCNv3`. It is
            the attribute ``dcn``, its name in released weights.
        options: What all blocks have in common.
        drop_path: Probability to skip each residual branch per sample, in [0, 1).
    """

    def __init__(
        self, channels: int, mixer: nn.Module, options: BlockOptions, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.layer_scale = options.layer_scale
        self.post_norm = options.post_norm
        self.norm1 = layer_norm(channels)
        self.dcn = mixer
        self.norm2 = layer_norm(channels)
        self.mlp = MLP(
            channels,
            int(channels * options.mlp_ratio),
            options.drop_rate,
            fc2_bias=options.mlp_fc2_bias,
        )
        self.drop_path = DropPath(drop_path)
        self.gamma1: nn.Parameter | None = None
        self.gamma2: nn.Parameter | None = None
        self.res_post_norm1: nn.LayerNorm | None = None
        self.res_post_norm2: nn.LayerNorm | None = None
        if options.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.empty(channels))
            self.gamma2 = nn.Parameter(torch.empty(channels))
        elif options.res_post_norm and not options.post_norm:
            self.res_post_norm1 = layer_norm(channels)
            self.res_post_norm2 = layer_norm(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the channel scales to ``layer_scale``; the submodules reset themselves."""
        for gamma in (self.gamma1, self.gamma2):
            if gamma is not None and self.layer_scale is not None:
                nn.init.constant_(gamma, self.layer_scale)

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Fill layer scales of 1.0 where a file has none: the same function."""
        if self.gamma1 is None or self.layer_scale != 1.0:
            return
        if any(k.endswith((".gamma1", ".gamma2")) for k in match.given):
            return
        for gamma in ("gamma1", "gamma2"):
            match.state[prefix + gamma] = torch.ones(self.gamma1.shape)
        match.note(f"{match.source} has no layer scale; it is 1.0 initially, the same function.")

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        keep = self._draw_keep(x)
        dtype = autocast_dtype(x.device.type)
        if dtype is None or x.dtype == torch.float64 or not self._casts_together(x.device.type):
            return self.run(x, *keep)
        with parameters_cast(self, dtype):
            return self.run(x, *keep)

    def _casts_together(self, device_type: str) -> bool:
        """Whether to cast all parameters by one kernel.

        One kernel saves launches on a GPU; a CPU has none, and a compiled block fuses the casts.
        Batch norm keeps its float32 parameters.
        """
        has_batch_norm = isinstance(self.norm1, ChannelsLastBatchNorm)
        return device_type != "cpu" and self.compilation is None and not has_batch_norm

    def compute(self, x: Tensor, keep1: Tensor | None, keep2: Tensor | None) -> Tensor:
        """Run both branches; ``keep`` is the factor of drop path per sample, ``(N, 1, 1, 1)``."""
        return self.branches(x, self.dcn, self.mlp, keep1, keep2)

    def branches(
        self,
        x: Tensor,
        mixer: Layer,
        mlp: Layer,
        keep1: Tensor | None = None,
        keep2: Tensor | None = None,
    ) -> Tensor:
        """`compute` with a given spatial mixer and MLP."""
        x, out = self._branch(x, self.norm1, mixer, self.res_post_norm1)
        x = add_branch(x, out, self.gamma1, keep1)
        x, out = self._branch(x, self.norm2, mlp, self.res_post_norm2)
        return add_branch(x, out, self.gamma2, keep2)

    def _branch(
        self, x: Tensor, norm: nn.Module, layer: Layer, res_post_norm: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """``x`` and its branch."""
        if self.post_norm:
            return x, norm(layer(x))
        normed, x = norm_fork(norm, x)
        out = layer(normed)
        return x, out if res_post_norm is None else res_post_norm(out)

    def _draw_keep(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Factors of drop path for both branches, drawn outside the compiled function.

        The rate differs from block to block, and a compiled function would contain it. A compiled
        block without drop path gets factors of 1, so that it shares the function of the others.
        """
        rate = self.drop_path.drop_prob or 0.0
        if not self.training or (rate == 0.0 and self.compilation is None):
            return None, None
        keep = x.new_ones(2, x.shape[0], 1, 1, 1)
        if rate > 0.0:
            keep.bernoulli_(1 - rate)
        if rate < 1.0:
            keep.div_(1 - rate)
        return keep[0], keep[1]
