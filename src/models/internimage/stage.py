"""A stage of InternImage: blocks of one resolution.

Source: "InternImage", CVPR 2023 (arXiv 2211.05778), figure 4; the positions of the norms are those
of the official code. Feature maps are channels-last, ``(N, H, W, C)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.models.internimage.blocks import Block, Downsample
from src.models.internimage.fused_block import FusedBlock
from src.models.internimage.inference_cache import InferenceCache
from src.models.internimage.layers import layer_norm
from src.models.internimage.packed_block import PackedBlock
from src.models.internimage.packed_conv import PackedConv
from src.models.internimage.parts import can_split, in_parts


class Stage(nn.Module):
    """Blocks of one resolution, with the norms around them and the step to the next stage.

    Args:
        blocks: The blocks in order.
        channels: Width of the feature map.
        norm: Whether a norm closes the stage.
        post_norm_block_ids: Blocks whose output is replaced by its norm.
        downsample: Whether another stage follows.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        channels: int,
        norm: bool,
        post_norm_block_ids: Sequence[int],
        downsample: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.post_norm_block_ids = tuple(post_norm_block_ids)
        self.post_norms = nn.ModuleList(layer_norm(channels) for _ in self.post_norm_block_ids)
        self.norm = layer_norm(channels) if norm else None
        self.downsample = Downsample(channels) if downsample else None
        self.grad_checkpointing = False
        self._cache = InferenceCache()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the stage.

        Args:
            x: Feature map of shape ``(N, H, W, C)``.

        Returns:
            The feature map of the stage, ``(N, H, W, C)``, and the input of the next stage (the
            same feature map if there is none).
        """
        packed = self._cache.packed_blocks(self.blocks, x)
        outer = [m for m in (self.post_norms, self.norm, self.downsample) if m is not None]
        if not can_split(x, *outer):
            out, *following = self._run(x, packed)
            return out, following[0] if following else out
        conv = None
        if self.downsample is not None:
            conv = self._cache.packed_conv(self.downsample, x)
        run = partial(self._run, packed=packed, conv=conv)
        if len(packed) < len(self.blocks):
            out, *following = run(x)
        else:
            values = x.shape[1] * x.shape[2] * packed[0].width
            out, *following = in_parts(x, values * packed[0].dtype.itemsize, run)
        return out, following[0] if following else out

    def train(self, mode: bool = True) -> Stage:
        """Set training or evaluation mode; training frees what evaluation keeps."""
        if mode:
            self._cache.clear()
        return super().train(mode)

    def free(self) -> None:
        """Free the packed weights that evaluation keeps; they are made again when needed."""
        self._cache.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stage:
        probe = torch.empty(0, dtype=torch.float32, device="cpu")
        if fn(probe) is not probe:  # the parameters move to another device or dtype
            self._cache.clear()
        return super()._apply(fn, recurse)

    def _run(
        self,
        x: Tensor,
        packed: Mapping[int, FusedBlock | PackedBlock],
        conv: PackedConv | None = None,
    ) -> tuple[Tensor, ...]:
        """Run the stage with packed weights for some of its blocks and for the downsampling."""
        checkpointing = self.grad_checkpointing and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            if index in packed:
                x = packed[index](x)
            else:
                x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
            if index in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(index)](x)
        if self.norm is not None:
            x = self.norm(x)
        if self.downsample is None:
            return (x,)
        return x, self.downsample(x) if conv is None else self.downsample.norm(conv(x))
