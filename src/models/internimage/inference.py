"""Copies of a network for inference on a CPU, with packed weights.

Between two forward passes, a trainable network keeps its weights as parameters: every pass casts
them under autocast, concatenates those of offset and mask, and reorders them for the matrix
products. A copy made by `prepare_for_inference` has done this once. Where the CPU has a kernel for
it, each block is one operator (`fused_block`); elsewhere, GELU and the residual connection are
fused with the products. A few images run at a time where feature maps are large, so that
intermediate values stay in the cache.

Under autocast to bfloat16 and with compiled parts, a network itself runs its blocks as one operator
during evaluation (`inference_cache`), nearly as fast as a copy, which has no weights to watch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.blocks import Block, Stem, check_channels
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.fused_block import FusedBlock, can_fuse
from src.models.internimage.layers import add_branch
from src.models.internimage.own_layers import has_own_layers, is_block, is_dense, is_downsample
from src.models.internimage.packed_block import PackedLinear
from src.models.internimage.packed_conv import PackedConv
from src.models.internimage.parts import in_parts
from src.models.internimage.stage import Stage
from src.models.layers.norm import LayerNorm, has_hooks
from src.models.layers.precision import autocast_dtype, without_autocast
from src.ops.cpu_norm import depthwise_norm_gelu, layer_norm


def prepare_for_inference(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Copy a network for inference on a CPU.

    The stem and the stages of every InternImage with `DCNv3` and LayerNorm in the network are
    replaced by faster ones. The rest is copied, and so are stages with layers of other types or
    with parametrizations. Packed weights that the network itself keeps are freed.

    The copy has the weights of this moment: later changes of the network do not reach it. It
    cannot be trained, saved, exported or moved to another device or dtype.

    Args:
        network: Network in evaluation mode on the CPU, with float32 parameters.
        dtype: Dtype that the copy computes with: float32 without autocast, or bfloat16 under
            autocast.

    Returns:
        The copy.

    Raises:
        UserError: If the network is in training mode or elsewhere, or cannot be prepared.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"A network can be prepared for float32 and bfloat16, got {dtype}.")
    if network.training:
        raise UserError("Only a network in evaluation mode can be prepared; call eval() first.")
    parameters = list(network.parameters())
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters):
        raise UserError("Only a network on the CPU with float32 parameters can be prepared.")
    prepared: dict[int, Any] = {}
    with torch.no_grad(), without_autocast("cpu"):
        for module in network.modules():
            if type(module) is Stem and _can_prepare_stem(module):
                prepared[id(module)] = _Stem(module, dtype)
            elif type(module) is Stage and _can_prepare(module, dtype):
                module.free()
                prepared[id(module)] = _Stage(module, dtype)
    if not prepared:
        raise UserError(
            f"Nothing in {type(network).__name__} can be prepared for inference in {dtype}: it has"
            " no stage of an InternImage with DCNv3 and LayerNorm that has no layers of others."
        )
    return copy.deepcopy(network, prepared)  # takes what is in the second argument as copies


def can_run_fused(network: nn.Module) -> bool:
    """Whether all blocks of InternImage in a network run as one operator in a float32 copy.

    False without such blocks, in training mode, on other devices and in other dtypes, and if a
    module has a hook, which a copy might not call.
    """
    stages = [module for module in network.modules() if isinstance(module, Stage)]
    if not stages or network.training or has_hooks(*network.modules()):
        return False
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in network.parameters()):
        return False
    return all(
        _can_prepare(stage, torch.float32)
        and all(can_fuse(cast("Block", block), torch.float32) for block in stage.blocks)
        for stage in stages
    )


def _can_prepare(stage: Stage, dtype: torch.dtype) -> bool:
    downsample = stage.downsample
    layers = [*stage.blocks, *stage.post_norms]
    if stage.norm is not None:
        layers.append(stage.norm)
    if downsample is not None:
        if not is_downsample(downsample) or not is_dense(downsample.conv):
            return False
        layers += downsample.children()
    is_wide = any(isinstance(m, LayerNorm) and m.float32_output for m in stage.modules())
    return (
        all(map(is_block, stage.blocks))
        and all(map(has_own_layers, layers))
        and (dtype == torch.float32 or not is_wide)
    )


def _can_prepare_stem(stem: Stem) -> bool:
    has_own = all(map(has_own_layers, stem.children())) and isinstance(stem.norm1, LayerNorm)
    return has_own and is_dense(stem.conv1) and is_dense(stem.conv2)


class _Prepared(nn.Module):
    """Base of the replacements: no parameters, and nothing that would change the weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.training = False

    def check(self) -> None:
        """Raise if this is another precision than the network was prepared for."""
        if torch.is_grad_enabled():
            raise UserError("A network prepared for inference runs under torch.no_grad().")
        dtype = autocast_dtype("cpu") or torch.float32
        if dtype != self.dtype:
            raise UserError(
                f"The network was prepared for inference in {self.dtype}, and this forward pass is"
                f" in {dtype}. Prepare it with dtype={dtype}, or change the precision."
            )

    def train(self, mode: bool = True) -> _Prepared:
        """Refuse training mode."""
        if mode:
            self._refuse("be trained")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Prepared:
        probe = fn(torch.empty(0))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            self._refuse("be moved to another device or dtype")
        return self

    def _save_to_state_dict(self, *args: Any) -> NoReturn:
        self._refuse("be saved")

    def _load_from_state_dict(self, *args: Any) -> NoReturn:
        self._refuse("load weights")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"A network prepared for inference cannot {what}; use the network it was made from."
        )


class _Norm:
    """`LayerNorm` of contiguous values, optionally with GELU."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias = norm.weight.detach().clone(), norm.bias.detach().clone()
        self.eps = norm.eps

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, gelu=gelu)


class _DCNv3:
    """`DCNv3`: see there."""

    def __init__(self, layer: DCNv3, dtype: torch.dtype) -> None:
        self.input_proj = PackedLinear(layer.input_proj.weight, layer.input_proj.bias, dtype)
        self.output_proj = PackedLinear(layer.output_proj.weight, layer.output_proj.bias, dtype)
        self.depthwise = (
            layer.dw_conv.weight.detach()[:, 0]
            .permute(1, 2, 0)
            .clone(memory_format=torch.contiguous_format)
        )
        assert layer.dw_conv.bias is not None
        self.bias = layer.dw_conv.bias.detach().clone()
        self.norm = _Norm(layer.dw_norm)
        self.offset_mask = PackedLinear(
            torch.cat([layer.offset.weight, layer.mask.weight]),
            torch.cat([layer.offset.bias, layer.mask.bias]),
            dtype,
        )
        self.widths = [layer.offset.out_features, layer.mask.out_features]
        self.gate: PackedLinear | None = None
        if layer.center_feature_scale_proj_weight is not None:
            self.gate = PackedLinear(
                layer.center_feature_scale_proj_weight, layer.center_feature_scale_proj_bias, dtype
            )
        self.groups = layer.groups
        side, half = layer.kernel_size, layer.kernel_size // 2
        sizes = [side, side], [1, 1], [half, half], [1, 1]
        self.window = layer.groups, *sizes, layer.offset_scale, layer.remove_center, True

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``, plus ``add``."""
        values = self.input_proj(x)
        norm = self.norm
        guide = depthwise_norm_gelu(x, self.depthwise, self.bias, norm.weight, norm.bias, norm.eps)
        offset, mask = self.offset_mask(guide).split(self.widths, dim=-1)
        out = torch.ops.internimage.dcnv3.default(values, offset, mask, *self.window)
        if self.gate is not None:
            gate = self.gate(guide).sigmoid().unsqueeze(-1)
            grouped = (*out.shape[:3], self.groups, -1)
            out = torch.lerp(out.view(grouped), values.view(grouped), gate).view_as(out)
        return self.output_proj(out, add=add)


class _MLP:
    """`MLP`: see there."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        self.fc1 = PackedLinear(layer.fc1.weight, layer.fc1.bias, dtype)
        self.fc2 = PackedLinear(layer.fc2.weight, layer.fc2.bias, dtype)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return self.fc2(self.fc1(x, gelu=True), add=add)


class _Block:
    """`Block`: see there."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        assert isinstance(block.dcn, DCNv3)
        self.width = block.mlp.fc1.out_features
        self.post_norm = block.post_norm
        self.branches: list[tuple[_Norm, _DCNv3 | _MLP]] = [
            (_Norm(block.norm1), _DCNv3(block.dcn, dtype)),
            (_Norm(block.norm2), _MLP(block.mlp, dtype)),
        ]
        self.gammas = [
            None if g is None else g.detach().clone() for g in (block.gamma1, block.gamma2)
        ]
        last = block.res_post_norm1, block.res_post_norm2
        self.last_norms = [None if norm is None else _Norm(norm) for norm in last]

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        for (norm, layer), gamma, last in zip(
            self.branches, self.gammas, self.last_norms, strict=True
        ):
            if not self.post_norm and gamma is None and last is None:
                x = layer(norm(x), add=x)
                continue
            out = norm(layer(x)) if self.post_norm else layer(norm(x))
            x = add_branch(x, out if last is None else last(out), gamma)
        return x


class _Stem(_Prepared):
    """`Stem`: see there."""

    def __init__(self, stem: Stem, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.conv1, self.norm1 = PackedConv(stem.conv1, dtype), _Norm(stem.norm1)
        self.conv2, self.norm2 = PackedConv(stem.conv2, dtype), _Norm(stem.norm2)
        self.in_chans = stem.conv1.in_channels

    def forward(self, image: Tensor) -> Tensor:
        """``(N, 3, H, W) -> (N, ceil(H/4), ceil(W/4), C)``."""
        self.check()
        check_channels(image, self.in_chans)
        values = self.conv1.channels * image.shape[2] * image.shape[3] // 4
        with without_autocast("cpu"):
            return in_parts(image, values * self.dtype.itemsize, self._run)[0]

    def _run(self, image: Tensor) -> tuple[Tensor]:
        x = image.to(self.dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        x = self.norm1(self.conv1(x), gelu=True)
        return (self.norm2(self.conv2(x)),)


class _Stage(_Prepared):
    """`Stage`: see there."""

    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.blocks = [
            FusedBlock(block, dtype) if can_fuse(block, dtype) else _Block(block, dtype)
            for block in cast("Iterable[Block]", stage.blocks)
        ]
        norms = cast("Iterable[LayerNorm]", stage.post_norms)
        self.post_norms = dict(zip(stage.post_norm_block_ids, map(_Norm, norms), strict=True))
        self.norm = None if stage.norm is None else _Norm(stage.norm)
        self.downsample: tuple[PackedConv, _Norm] | None = None
        if stage.downsample is not None:
            self.downsample = PackedConv(stage.downsample.conv, dtype), _Norm(stage.downsample.norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map of the stage, and the input of the next one."""
        self.check()
        values = x.shape[1] * x.shape[2] * self.blocks[0].width
        with without_autocast("cpu"):
            x = x.to(self.dtype).contiguous()
            out, *following = in_parts(x, values * self.dtype.itemsize, self._run)
        return out, following[0] if following else out

    def _run(self, x: Tensor) -> tuple[Tensor, ...]:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.post_norms:
                x = self.post_norms[index](x)
        if self.norm is not None:
            x = self.norm(x)
        if self.downsample is None:
            return (x,)
        conv, norm = self.downsample
        return x, norm(conv(x))
