"""Image and text tower with a common embedding (CLIP, Radford et al., ICML 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.image_text.text_tower import TextTower
from src.models.internimage import InternImage
from src.models.layers.linear import Linear

LARGEST_SCALE = 100.0
"""Limit of the learned scale, as in CLIP."""


class ImageTextFeatures(NamedTuple):
    """Features of images and texts; what was not given is ``None``.

    Attributes:
        image: Image features of length 1, float32, shape ``(N, D)``.
        text: Text features of length 1, float32, shape ``(M, D)``.
        scale: Factor of the cosine similarities (inverse temperature), shape ``(1,)``.
        bias: Bias of the logits, shape ``(1,)``, if the model has one.
    """

    image: Tensor | None
    text: Tensor | None
    scale: Tensor
    bias: Tensor | None


class ImageTextModel(nn.Module):
    """InternImage as image tower, a text tower, and a linear projection of the image features.

    The image tower is called ``backbone``, so that its weights load into other networks and
    settings such as ``freeze`` apply to it.

    Args:
        backbone: Makes the image tower, with its pooled or its CLIP-projector head; called with
            ``num_classes=0``.
        text: Makes the text tower, whose ``output_dim`` is the width of the embedding.
        logit_scale: Initial factor of the cosine similarities (inverse temperature): 1/0.07 in
            CLIP, 10 in SigLIP. Learned, up to 100.
        logit_bias: Initial bias of the logits, learned: -10 in SigLIP; ``None`` for CLIP, which has
            none.

    Raises:
        UserError: If ``logit_scale`` is not in (0, 100].
    """

    def __init__(
        self,
        backbone: Callable[[int], InternImage] = InternImage,
        text: Callable[[], TextTower] = TextTower,
        logit_scale: float = 1 / 0.07,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 < logit_scale <= LARGEST_SCALE:
            raise UserError(
                f"logit_scale must be above 0 and at most {LARGEST_SCALE:g}, got {logit_scale}."
            )
        self._initial = (math.log(logit_scale), logit_bias)
        make_backbone: Callable[..., InternImage] = backbone
        self.backbone = make_backbone(num_classes=0)
        self.text = text()
        width = self.backbone.head_hidden_size
        # One value each, because FSDP2 does not shard scalars.
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.empty(1))
        self.image_projection = Linear(width, self.text.output_dim, init=width**-0.5, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial scale and bias; the submodules reset themselves."""
        scale, bias = self._initial
        nn.init.constant_(self.logit_scale, scale)
        if self.logit_bias is not None and bias is not None:
            nn.init.constant_(self.logit_bias, bias)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage of the image tower."""
        return tuple(self.backbone.depths)

    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from weight decay in addition to 1-D parameters and biases."""
        parts = {"backbone": self.backbone.no_weight_decay(), "text": self.text.no_weight_decay()}
        return {f"{part}.{name}" for part, names in parts.items() for name in names}

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> ImageTextFeatures:
        """Features of images, of texts, or of both.

        Args:
            image: Normalised images, ``(N, 3, H, W)``.
            text: Token ids, int64, ``(M, L)``.
        """
        image_features = None if image is None else self.encode_image(image)
        text_features = None if text is None else F.normalize(self.text(text).float(), dim=-1)
        scale = self.logit_scale.float().clamp(max=math.log(LARGEST_SCALE)).exp()
        return ImageTextFeatures(image_features, text_features, scale, self.logit_bias)

    def encode_image(self, image: Tensor) -> Tensor:
        """Features of images of length 1; in sharded networks call the model instead."""
        return F.normalize(self.image_projection(self.backbone(image)).float(), dim=-1)

    def dense_outputs(self, image: Tensor) -> list[Tensor]:
        """Features of images and of as many texts of full length, for the memory planner."""
        size = (len(image), self.text.context_length)
        tokens = torch.zeros(size, dtype=torch.long, device=image.device)
        features = self(image, tokens)
        outputs = [features.image, features.text]
        return [out for out in outputs if out is not None and out.requires_grad]
