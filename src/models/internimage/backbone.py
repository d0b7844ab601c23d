"""The InternImage backbone: stem and stages, one feature map per stage.

Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions", CVPR 2023 (arXiv 2211.05778). FlashInternImage (Xiong et al., CVPR 2024, arXiv
2401.06197) is the same backbone with DCNv4. Attribute names and the positions of the norms follow
the official code (OpenGVLab/InternImage, OpenGVLab/DCNv4, MIT); this is an independent
implementation.

Features are channels-last ``(N, H, W, C)`` inside and are returned as ``(N, C, H, W)`` views of the
same memory. The classifier is in ``classifier.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Unpack, cast

import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from src.errors import UserError
from src.models.internimage.architectures import (
    ARCHITECTURES,
    Architecture,
    MixerOptions,
    architecture_of,
)
from src.models.internimage.blocks import Block, BlockOptions, Stem
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.dcnv4 import DCNv4
from src.models.internimage.layers import replace_layer_norms
from src.models.internimage.mixer import MixerFactory
from src.models.internimage.stage import Stage
from src.models.layers.low_rank import add_low_rank
from src.models.layers.norm import set_float32_norms
from src.models.weights.match import Match, PretrainedBackbone, Renames


class InternImageBackbone(PretrainedBackbone):
    """Stem and stages of InternImage; returns one feature map per requested stage.

    No norm is added to the outputs: the feature map of a stage is the output of its last block (or
    of the norm that closes the stage), before the downsampling.

    Args:
        variant: Named architecture, a key of `ARCHITECTURES` such as ``internimage_t``. Arguments
            that are given override its values. ``None`` means the defaults below.
        mixer: Makes the spatial mixer of each block, called with the channels and the groups of the
            stage. ``None`` is what ``core_op`` says, with the options below.
        mlp_ratio: Hidden width of the MLPs over the width of the stage.
        drop_rate: Dropout after the stem and in the MLPs, in [0, 1).
        in_chans: Channels of the image.
        grad_checkpointing: Activation checkpointing: every block is computed again in the backward
            pass to save memory.
        float32_norms: Under autocast, norms return float32, as in the official code, instead of the
            autocast dtype.
        out_indices: Stages to return, ascending; ``None`` is all.
        frozen_stages: Number of leading stages that are neither trained nor put in training mode;
            the stem stays trainable, as in the official code.
        channels: Width of the first stage, even (default: 64); each later stage doubles it.
        depths: Blocks per stage (default: 4, 4, 18, 4).
        groups: Groups of the mixer per stage (default: 4, 8, 16, 32); divisors of the width.
        drop_path_rate: Drop-path probability of the last block (default: 0); grows linearly from 0
            over all blocks of all stages.
        layer_scale: Initial value of learned channel scales in the blocks; ``None`` (default) means
            no scales.
        mlp_fc2_bias: Whether the second layer of the MLPs has a bias (default: yes).
        post_norm: Norm after each branch instead of before.
        res_post_norm: Second norm after each branch; without effect if ``post_norm`` or
            ``layer_scale`` is given.
        level2_post_norm_block_ids: Blocks of the third stage (index 2) followed by a norm.
        norm_layer: ``LN`` (default), or ``BN`` for batch norm in place of every LayerNorm of the
            backbone.
        core_op: The spatial mixer: ``DCNv3`` (default) or ``DCNv4``.
        kernel_size: Odd side of the sampling grid of the mixer (default: 3).
        dw_kernel_size: Odd side of its depthwise convolution; ``None`` means ``kernel_size`` for
            DCNv3, and no such convolution for DCNv4.
        offset_scale: Factor on the sampling grid and on the learned offsets (default: 1).
        center_feature_scale: Blend the output of the mixer with its projected input; a norm then
            closes every stage.
        remove_center: Sample the grid without its centre.
        dcn_output_bias: Whether the last layer of DCNv4 has a bias (default: yes); that of DCNv3
            always has one.

    Raises:
        UserError: If the arguments are inconsistent.
    """

    checkpoint_anchor: ClassVar[str] = "patch_embed.conv1.weight"
    checkpoint_parts: ClassVar[tuple[str, ...]] = ("patch_embed.", "levels.")
    official_renames: ClassVar[Renames] = (
        (r"^(patch_embed\.norm\d)\.", r"\1.1."),
        (r"^(levels\.\d+\.downsample\.norm)\.", r"\1.1."),
        (r"^(levels\.\d+\.norm)\.", r"\1.0."),
        (r"^(levels\.\d+\.post_norms\.\d+)\.", r"\1.0."),
        (r"^(levels\.\d+\.blocks\.\d+\.(?:res_post_)?norm\d)\.", r"\1.0."),
        (r"^conv_head\.conv\.", "conv_head.0."),
        (r"^conv_head\.norm\.", "conv_head.1.0."),
        (r"^dcnv3_head_x4\.", "dcnv3_head_x4.0."),
        (r"^(clip_projector\.norm1_[qkv])\.", r"\1.0."),
        (r"^fc_norm\.", "fc_norm.0."),
    )

    def __init__(
        self,
        variant: str | None = None,
        *,
        mixer: MixerFactory | None = None,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        grad_checkpointing: bool = False,
        float32_norms: bool = False,
        out_indices: tuple[int, ...] | None = None,
        frozen_stages: int = 0,
        **architecture: Unpack[Architecture],
    ) -> None:
        super().__init__()
        arch = architecture_of(variant, architecture)
        channels, depths, groups = arch["channels"], arch["depths"], arch["groups"]
        post_norm_block_ids = tuple(arch["level2_post_norm_block_ids"] or ())
        if in_chans < 1:
            raise UserError(f"in_chans must be at least 1 channel of the image, got {in_chans}.")
        if out_indices is None:
            out_indices = tuple(range(len(depths)))
        _check_stages(channels, depths, groups, post_norm_block_ids, out_indices, frozen_stages)
        self.depths = tuple(depths)
        self.out_indices = tuple(out_indices)
        self.frozen_stages, self.stem_is_frozen = frozen_stages, False
        self.stage_channels = [channels * 2**i for i in range(len(depths))]
        self.out_channels = [self.stage_channels[i] for i in self.out_indices]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"levels.{i}"}
            for i, width in enumerate(self.stage_channels)
        ]
        if mixer is None:
            mixer = _mixer(arch)
        else:
            _refuse_mixer_options(architecture)
        options = BlockOptions(
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            mlp_fc2_bias=arch["mlp_fc2_bias"],
            layer_scale=arch["layer_scale"],
            post_norm=arch["post_norm"],
            res_post_norm=arch["res_post_norm"],
        )
        self.patch_embed = Stem(in_chans, channels)
        self.pos_drop = nn.Dropout(drop_rate)
        drop_paths = iter(_drop_path_rates(arch["drop_path_rate"], sum(depths)))
        self.levels = nn.ModuleList()
        for i, width in enumerate(self.stage_channels):
            blocks = [
                Block(width, mixer(width, groups[i]), options, drop_path=next(drop_paths))
                for _ in range(depths[i])
            ]
            stage = Stage(
                blocks,
                width,
                norm=not options.post_norm or arch["center_feature_scale"],
                post_norm_block_ids=post_norm_block_ids if i == 2 else (),
                downsample=i < len(depths) - 1,
            )
            self.levels.append(stage)
        if arch["norm_layer"] == "BN":
            replace_layer_norms(self)
        elif arch["norm_layer"] != "LN":
            raise UserError(f"norm_layer must be 'LN' or 'BN', got {arch['norm_layer']!r}.")
        self.levels[:frozen_stages].requires_grad_(False)
        self.set_grad_checkpointing(grad_checkpointing)
        self.float32_norms = float32_norms
        set_float32_norms(self, float32_norms)

    def train(self, mode: bool = True) -> InternImageBackbone:
        """Set training mode; a frozen stem and frozen stages stay in evaluation mode."""
        super().train(mode)
        self.levels[: self.frozen_stages].eval()
        if self.stem_is_frozen:
            self.pos_drop.eval()
            if hasattr(self, "patch_embed"):  # the lead of a composite backbone has no stem
                self.patch_embed.eval()
        return self

    def freeze(self, stages: int | None = None) -> None:
        """Freeze the stem and the first stages: they are not trained, and stay in evaluation mode.

        Args:
            stages: Number of stages; ``None`` freezes the whole backbone.

        Raises:
            UserError: If the backbone has fewer stages.
        """
        number = len(self.levels) if stages is None else stages
        if not 0 <= number <= len(self.levels):
            raise UserError(
                f"The backbone has {len(self.levels)} stages, so the number of frozen stages must"
                f" be 0 (only the stem) to {len(self.levels)}, got {number}."
            )
        self.frozen_stages, self.stem_is_frozen = max(number, self.frozen_stages), True
        if hasattr(self, "patch_embed"):
            self.patch_embed.requires_grad_(False)
        self.levels[: self.frozen_stages].requires_grad_(False)
        self.train(self.training)

    def add_low_rank(self, rank: int) -> None:
        """Train low-rank updates of the linear layers instead of the weights (`add_low_rank`).

        Args:
            rank: Rank of the updates, at least 1.

        Raises:
            UserError: If all stages are frozen.
        """
        if self.frozen_stages == len(self.levels):
            raise UserError(
                "All stages of the backbone are frozen, so there is nothing for model.lora to"
                " train. Set model.freeze to null or to fewer stages."
            )
        if hasattr(self, "patch_embed"):
            self.patch_embed.requires_grad_(False)
        add_low_rank(self.levels[self.frozen_stages :], rank)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing of the blocks on or off."""
        for stage in cast("Iterable[Stage]", self.levels):
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers from input to output (timm contract)."""
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^levels\.(\d+)"}
        end_of_stage = (10_000,)  # after the last block of the stage
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (r"^levels\.(\d+)\.blocks\.(\d+)", None),
                (r"^levels\.(\d+)\.(?:post_norms|norm|downsample)", end_of_stage),
            ],
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from weight decay in addition to 1-D parameters and biases.

        None, as in the official recipe.
        """
        return set()

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Repeat the first convolution for images of other than three channels (timm's rule)."""
        key = prefix + self.checkpoint_anchor
        weight = match.state.get(key)
        if weight is None:  # the lead backbone of `CBInternImageBackbone` has no stem
            return
        in_chans = self.patch_embed.conv1.in_channels
        if weight.shape[1] == 3 and in_chans != 3:
            match.state[key] = adapt_input_conv(in_chans, weight)
            match.note(
                f"{match.source} is for 3 image channels; its first convolution is repeated for"
                f" {in_chans}."
            )

    @classmethod
    def describe_checkpoint(
        cls, tensors: Mapping[str, Tensor], prefix: str
    ) -> tuple[str | None, str]:
        """Variant of the same width and depths as the tensors, if any, and a description."""
        stem = tensors.get(f"{prefix}patch_embed.conv2.weight")
        width = 0 if stem is None else len(stem)
        blocks = re.compile(re.escape(prefix) + r"levels\.(\d+)\.blocks\.(\d+)\.")
        depths: dict[int, int] = {}
        for found in filter(None, map(blocks.match, tensors)):
            level, block = int(found[1]), int(found[2])
            depths[level] = max(depths.get(level, 0), block + 1)
        shape = tuple(depths[level] for level in sorted(depths))
        is_flash = f"{prefix}levels.0.blocks.0.dcn.offset_mask.weight" in tensors
        core_op = "DCNv4" if is_flash else "DCNv3"
        norm = "batch norm" if _has_batch_norm(list(tensors)) else "LayerNorm"
        text = f"{width} channels, depths {'/'.join(map(str, shape))}, {norm}"
        for variant in ARCHITECTURES:
            arch = architecture_of(variant, {})
            if (arch["channels"], arch["depths"], arch["core_op"]) == (width, shape, core_op):
                return variant, f"{variant} ({text})"
        return None, f"an InternImage of {text}, {core_op}"

    @classmethod
    def explain_mismatch(cls, missing: list[str], unused: list[str]) -> str:
        """What to change when a file of the right variant does not fit."""
        gammas = (".gamma1", ".gamma2")
        if unused and all(key.endswith(gammas) for key in unused):
            return "Set layer_scale to 1.0 to keep the scales of the file."
        if missing and all(key.endswith(gammas) for key in missing):
            return "Set layer_scale to null, or to 1.0 for initial scales of the same function."
        if _has_batch_norm(unused):
            return f"The file has batch norm; {_set_norm(unused, 'BN')}"
        if _has_batch_norm(missing):
            return f"The file has LayerNorm; {_set_norm(missing, 'LN')}"
        return (
            "Compare variant, channels, depths, groups, post_norm, res_post_norm, layer_scale,"
            " dw_kernel_size, level2_post_norm_block_ids, center_feature_scale, norm_layer,"
            " core_op, dcn_output_bias and mlp_fc2_bias with the configuration of the file."
        )

    def forward_stages(self, image: Tensor, last: int | None = None) -> list[Tensor]:
        """Feature maps of the stages ``0..last`` (default: all), each ``(N, C, H, W)``."""
        x = self.pos_drop(self.patch_embed(image))  # (N, H, W, C)
        features = []
        for stage in self.levels[: None if last is None else last + 1]:
            out, x = stage(x)
            features.append(out.permute(0, 3, 1, 2))  # (N, C, H, W)
        return features

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the feature maps of ``out_indices``.

        Args:
            image: Normalised images of shape ``(N, 3, H, W)``; any size from 1 pixel.

        Returns:
            Feature maps of shape ``(N, C_i, ceil(H / s_i), ceil(W / s_i))`` with strides 4, 8, 16,
            32.
        """
        features = self.forward_stages(image, max(self.out_indices))
        return [features[i] for i in self.out_indices]


def _mixer(arch: Architecture) -> MixerFactory:
    options: dict[str, Any] = {
        "kernel_size": arch["kernel_size"],
        "dw_kernel_size": arch["dw_kernel_size"],
        "offset_scale": arch["offset_scale"],
        "center_feature_scale": arch["center_feature_scale"],
        "remove_center": arch["remove_center"],
    }
    if arch["core_op"] == "DCNv4":
        return partial(DCNv4, output_bias=arch["dcn_output_bias"], **options)
    if arch["core_op"] != "DCNv3":
        raise UserError(f"core_op must be 'DCNv3' or 'DCNv4', got {arch['core_op']!r}.")
    if not arch["dcn_output_bias"]:
        raise UserError("dcn_output_bias=false is for core_op='DCNv4'; DCNv3 always has the bias.")
    return partial(DCNv3, **options)


def _refuse_mixer_options(given: Architecture) -> None:
    """Raise if options of the mixer are given with another one, which would ignore them."""
    if names := sorted(given.keys() & MixerOptions.__optional_keys__):
        raise UserError(
            f"The backbone got options of its own mixers ({', '.join(names)}) next to another one;"
            " remove them, or give them to the mixer (its init_args in a recipe)."
        )


def _drop_path_rates(last: float, num_blocks: int) -> list[float]:
    return [last * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


def _check_stages(
    channels: int,
    depths: Sequence[int],
    groups: Sequence[int],
    post_norm_block_ids: Sequence[int],
    out_indices: Sequence[int],
    frozen_stages: int,
) -> None:
    num_stages = len(depths)
    if channels < 2 or channels % 2:
        raise UserError(f"channels must be even and at least 2, got {channels}.")
    if not depths or len(groups) != num_stages:
        raise UserError(
            f"depths and groups need one entry per stage, got depths={list(depths)} and "
            f"groups={list(groups)}."
        )
    if min(depths) < 1 or min(groups) < 1:
        raise UserError(
            f"depths and groups must be at least 1, got depths={list(depths)} and "
            f"groups={list(groups)}."
        )
    if post_norm_block_ids and (num_stages < 3 or max(post_norm_block_ids) >= depths[2]):
        raise UserError(
            f"level2_post_norm_block_ids={list(post_norm_block_ids)} must be blocks of the third "
            f"stage, which are 0 to {depths[2] - 1 if num_stages > 2 else 'none'}."
        )
    if not out_indices or min(out_indices) < 0 or max(out_indices) >= num_stages:
        raise UserError(f"out_indices={list(out_indices)} must be stages, 0 to {num_stages - 1}.")
    if not 0 <= frozen_stages <= num_stages:
        raise UserError(f"frozen_stages must be 0 to {num_stages}, got {frozen_stages}.")


def _set_norm(keys: list[str], norm: str) -> str:
    """How to make the network with a norm, by the option of its backbone and in Python."""
    part = "backbone." if keys[0].startswith("backbone.") else ""
    return (
        f"make the network with --model.network.{part}norm_layer {norm} (in Python,"
        f" norm_layer='{norm}')."
    )


def _has_batch_norm(keys: list[str]) -> bool:
    """Whether the names have the statistics of the first block, which every variant has."""
    first = "levels.0.blocks.0.norm1."
    return any(first in key and key.endswith("running_mean") for key in keys)
