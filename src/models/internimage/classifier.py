"""The InternImage classifier with timm's backbone contract.

Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions", CVPR 2023 (arXiv 2211.05778); heads as in the official code (OpenGVLab/InternImage,
MIT). The backbone is in ``backbone.py``; the named variants are in ``architectures.py``, their timm
registration in ``registry.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.adaptive_avgmax_pool import adaptive_pool_feat_mult
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from src.errors import UserError
from src.models.graphs import Graph, free_sides, multiples_of_32
from src.models.internimage.architectures import architecture_of
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.graphs import classifier_graph
from src.models.internimage.heads import (
    CLIP_WIDTH,
    PROJECTED_WIDTH,
    ClipProjector,
    ConvHead,
    pooling,
)
from src.models.internimage.imagenet22k import indices_22k_to_1k
from src.models.internimage.layers import layer_norm
from src.models.layers.linear import Init, Linear
from src.models.layers.norm import set_float32_norms
from src.models.weights import load_official
from src.models.weights.match import Match

__all__ = ["InternImage", "InternImageBackbone"]


class InternImage(InternImageBackbone):
    """InternImage image classifier with timm's backbone contract.

    There are two heads. The standard one (T to XL) is a 1x1 convolution, pooling and a linear layer
    on the last feature map. The CLIP-projector head (H, G) merges the last two feature maps, pools
    them by attention and classifies; it needs sides whose 1/16 is even, for instance multiples of
    32.

    Args:
        num_classes: Width of the logits; 0 returns the pooled features.
        variant: Named architecture, see `InternImageBackbone`.
        use_clip_projector: Use the head of H and G; ``None`` is as the variant says, else false.
        cls_scale: Width of the standard head over the width of the last stage.
        global_pool: Pooling by timm's name: ``avg`` (official), ``max``, ``avgmax``, ``catavgmax``,
            or ``""``, which returns a feature map and needs ``num_classes=0``. The CLIP projector
            pools by attention and takes ``avg`` (itself) or ``""``.
        backbone: Further arguments of `InternImageBackbone`.

    Raises:
        UserError: If the arguments are inconsistent.

    Attributes:
        metadata_inputs: Further inputs of `forward` by name, and the values of each per image.
        head_init: Initial weights of the last linear layer.
    """

    metadata_inputs: ClassVar[dict[str, int]] = {}
    head_init: ClassVar[Init] = "trunc_normal"

    def __init__(
        self,
        num_classes: int = 1000,
        variant: str | None = None,
        *,
        use_clip_projector: bool | None = None,
        cls_scale: float = 1.5,
        global_pool: str | None = "avg",
        **backbone: Any,
    ) -> None:
        super().__init__(variant, out_indices=None, **backbone)
        if use_clip_projector is None:
            use_clip_projector = architecture_of(variant, {})["use_clip_projector"]
        self.num_classes = num_classes
        self.drop_rate = self.pos_drop.p
        self.use_clip_projector = use_clip_projector
        width = self.stage_channels[-1]
        self.conv_head: ConvHead | None = None
        self.dcnv3_head_x4: nn.Conv2d | None = None
        self.dcnv3_head_x3: nn.Conv2d | None = None
        self.clip_projector: ClipProjector | None = None
        self.fc_norm: nn.LayerNorm | None = None
        if use_clip_projector:
            self.num_features, self.head_hidden_size = CLIP_WIDTH, PROJECTED_WIDTH
            self.dcnv3_head_x4 = nn.Conv2d(width, 4 * CLIP_WIDTH, 1)
            self.dcnv3_head_x3 = nn.Conv2d(width // 2, CLIP_WIDTH, 1)
            self.clip_projector = ClipProjector(CLIP_WIDTH, PROJECTED_WIDTH)
            self.fc_norm = layer_norm(PROJECTED_WIDTH)
        else:
            self.num_features, self.head_hidden_size = width, int(width * cls_scale)
            self.conv_head = ConvHead(width, int(width * cls_scale))
        set_float32_norms(self, self.float32_norms)
        self.global_pool = "avg"
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a newly initialised one.

        Args:
            num_classes: Width of the logits; 0 returns the pooled features.
            global_pool: Pooling from now on, see the class; ``None`` keeps it.

        Raises:
            UserError: If there is no such pooling, or ``num_classes`` is not 0 without pooling.
        """
        if num_classes < 0:
            raise UserError(f"num_classes must be 0 (no classifier) or more, got {num_classes}.")
        if global_pool is not None:
            self._set_pooling(global_pool)
        if num_classes and not self.global_pool:
            raise UserError(
                "Without pooling (global_pool='') the output is a feature map, which the classifier"
                " cannot read; set num_classes to 0, or global_pool to 'avg'."
            )
        old = next(self.head.parameters(), next(self.parameters()))
        self.num_classes = num_classes
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = Linear(self.head_hidden_size, num_classes, init=self.head_init)
        self.head = head.to(device=old.device, dtype=old.dtype)

    def _set_pooling(self, global_pool: str) -> None:
        if self.use_clip_projector:
            if global_pool not in ("", "avg"):
                raise UserError(
                    "The CLIP-projector head of InternImage-H and -G pools by attention, so"
                    f" global_pool must be 'avg' or '', got {global_pool!r}."
                )
        elif self.conv_head is not None:
            self.conv_head.pool = pooling(global_pool)
            width = self.conv_head.norm.num_features
            self.head_hidden_size = width * adaptive_pool_feat_mult(global_pool)
        self.global_pool = global_pool

    def forward_features(self, image: Tensor) -> Tensor:
        """Compute the feature map that the head pools.

        Args:
            image: Normalised images of shape ``(N, 3, H, W)``.

        Returns:
            The last feature map, ``(N, C, H/32, W/32)``; with the CLIP projector the merged one,
            ``(N, 1024, H/16, W/16)``.
        """
        return self._merge(self.forward_stages(image))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the result of `forward_features`.

        Args:
            features: Feature map of shape ``(N, num_features, h, w)``.
            pre_logits: Stop before the last linear layer.

        Returns:
            Logits ``(N, num_classes)``, pooled features ``(N, head_hidden_size)``, or, without
            pooling, a feature map.
        """
        if self.use_clip_projector and not self.global_pool:
            return features
        if self.clip_projector is not None and self.fc_norm is not None:
            tokens = features.flatten(2).transpose(1, 2)  # (N, L, C)
            pooled = self.fc_norm(self.clip_projector(tokens))
        elif self.conv_head is not None:
            pooled = self.conv_head(features)
        else:
            raise UserError("This InternImage was pruned to its feature maps and has no head left.")
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the feature maps of several stages (timm contract).

        Args:
            x: Normalised images of shape ``(N, 3, H, W)``.
            indices: Last ``n`` stages if an int, all if ``None``, else these.
            norm: Without effect; there is no norm outside the stages.
            stop_early: Do not compute stages after the last requested one.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Return the list alone.

        Returns:
            Feature maps ``(N, C_i, H_i, W_i)``; preceded by the result of `forward_features` unless
            ``intermediates_only``.

        Raises:
            UserError: If ``output_fmt`` is another one.
        """
        if output_fmt != "NCHW":
            raise UserError(
                f"InternImage returns feature maps as NCHW only, got output_fmt={output_fmt!r}."
            )
        take, last = feature_take_indices(len(self.levels), indices)
        can_stop = stop_early or intermediates_only
        features = self.forward_stages(x, last if can_stop else None)
        intermediates = [features[i] for i in take]
        if intermediates_only:
            return intermediates
        is_complete = len(features) == len(self.depths)
        return self._merge(features) if is_complete else features[-1], intermediates

    def freeze(self, stages: int | None = None) -> None:
        """Freeze the stem and the first stages, or all that `forward_features` computes.

        Args:
            stages: Number of stages; ``None`` freezes all of them and, with the CLIP projector, the
                convolutions that merge the last two feature maps.

        Raises:
            UserError: If there are fewer stages.
        """
        super().freeze(stages)
        if stages is None:
            self._freeze_merging()

    def add_low_rank(self, rank: int) -> None:
        """Train low-rank updates of the backbone, and the head; see `InternImageBackbone`.

        Args:
            rank: Rank of the updates, at least 1.

        Raises:
            UserError: If all stages are frozen.
        """
        super().add_low_rank(rank)
        self._freeze_merging()

    def _freeze_merging(self) -> None:
        for merging in (self.dcnv3_head_x4, self.dcnv3_head_x3):
            if merging is not None:
                merging.requires_grad_(False)

    def export_graphs(self) -> list[Graph]:
        """The classifier as one file, see `src.models.graphs`."""
        sides = multiples_of_32() if self.use_clip_projector else free_sides()
        return [classifier_graph(self, sides)]

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last requested one, and the head (timm contract).

        Args:
            indices: Last ``n`` stages if an int, else these.
            prune_norm: Without effect; there is no norm outside the stages.
            prune_head: Drop the head.

        Returns:
            The indices of the feature maps that stay available.
        """
        take, last = feature_take_indices(len(self.levels), indices)
        self.levels = self.levels[: last + 1]
        if prune_head:
            self.conv_head = self.dcnv3_head_x4 = self.dcnv3_head_x3 = None
            self.clip_projector = self.fc_norm = None
            self.reset_classifier(0)
        return take

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]  # logits, not features
        """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(image))

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Select or drop the rows of a head for other classes."""
        super().adapt_checkpoint(prefix, match)
        keys = (f"{prefix}head.weight", f"{prefix}head.bias")
        if self.num_classes == 0 or not all(key in match.state for key in keys):
            return
        rows = len(match.state[keys[0]])
        if rows == self.num_classes:
            return
        if match.remap_22k and rows == 21841 and self.num_classes == 1000:
            index = torch.tensor(indices_22k_to_1k())
            match.state |= {key: match.state[key][index] for key in keys}
            match.note(
                f"{match.source} has 21841 classes; the head takes the rows of the 1000 classes of"
                " ImageNet."
            )
            return
        own = self.head.state_dict()
        match.keep_initial({key: own[key.rpartition(".")[2]] for key in keys})
        match.note(
            f"{match.source} has {rows} classes, the network {self.num_classes}: the head is"
            " randomly initialised."
        )

    def load_pretrained(self, path: str | Path) -> None:
        """Load an official checkpoint file (called by timm for ``pretrained=True``)."""
        load_official(self, path)

    def _merge(self, features: list[Tensor]) -> Tensor:
        if self.dcnv3_head_x4 is None or self.dcnv3_head_x3 is None:
            return features[-1]
        coarse = F.pixel_shuffle(self.dcnv3_head_x4(features[-1]), 2)
        fine: Tensor = self.dcnv3_head_x3(features[-2])
        if coarse.shape != fine.shape:
            raise UserError(
                f"The CLIP-projector head of InternImage-H and -G needs an image whose last two "
                f"feature maps differ by exactly a factor of 2, but they are "
                f"{tuple(features[-2].shape[2:])} and {tuple(features[-1].shape[2:])}; use sides "
                f"that are multiples of 32."
            )
        return coarse + fine
