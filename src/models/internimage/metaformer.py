"""InternImage with heads for the date and the place of an image (iNaturalist 2018).

Source: the official classifier of iNaturalist 2018 (OpenGVLab/InternImage, MIT). Two small residual
networks encode the date and the place; their logits are added to those of the image. The encoding
is that of Mac Aodha et al., "Presence-Only Geographical Priors for Fine-Grained Image
Classification", ICCV 2019; the values that go in are in ``src/data/formats/inaturalist.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from src.models.internimage.classifier import InternImage
from src.models.internimage.layers import layer_norm
from src.models.layers.linear import Init, Linear
from src.models.layers.norm import LayerNorm, set_float32_norms
from src.models.weights.match import Match

METADATA_WIDTH = 64
_ENCODER_EPS = 1e-5  # PyTorch's default, unlike the norms of the backbone


class InternImageMetaFormer(InternImage):
    """InternImage classifier that also reads the date and the place of each image.

    ``logits = head(image features) + meta_head(meta_norm(date features, place features))``. Zeros
    stand for an unknown date or place.

    Args:
        num_classes: Width of the logits; 0 returns the pooled features of the image.
        variant: Named architecture, see `InternImageBackbone`; the published weights are
            ``internimage_h``.
        kwargs: Further arguments of `InternImage`.

    Raises:
        UserError: If the arguments are inconsistent.
    """

    metadata_inputs: ClassVar[dict[str, int]] = {"temporal": 4, "spatial": 3}
    # The official recipe scales a newly initialised head by 0.001.
    head_init: ClassVar[Init] = 0.02 * 0.001

    def __init__(self, num_classes: int = 8142, variant: str | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, variant, **kwargs)
        temporal, spatial = self.metadata_inputs.values()
        self.meta_head_1 = metadata_encoder(temporal)
        self.meta_head_2 = metadata_encoder(spatial)
        self.meta_norm = layer_norm(2 * METADATA_WIDTH)
        set_float32_norms(self, self.float32_norms)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layers of image and metadata; see `InternImage`."""
        super().reset_classifier(num_classes, global_pool)
        old = next(self.parameters())
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = Linear(2 * METADATA_WIDTH, num_classes, init="trunc_normal")
        self.meta_head: nn.Module = head.to(device=old.device, dtype=old.dtype)

    def forward(  # type: ignore[override]  # logits of an image and its metadata
        self, image: Tensor, temporal: Tensor | None = None, spatial: Tensor | None = None
    ) -> Tensor:
        """Classify images.

        Args:
            image: Normalised images of shape ``(N, 3, H, W)``.
            temporal: Encoded dates, ``(N, 4)``; default is unknown.
            spatial: Encoded places, ``(N, 3)``; default is unknown.

        Returns:
            Logits ``(N, num_classes)``; without classes, the pooled features of the images.
        """
        out = super().forward(image)
        return out + self.metadata_logits(out, temporal, spatial) if self.num_classes else out

    def metadata_logits(
        self, like: Tensor, temporal: Tensor | None = None, spatial: Tensor | None = None
    ) -> Tensor:
        """Logits ``(N, num_classes)`` of the metadata alone.

        Args:
            like: A tensor with ``N`` rows, on the device of the network.
            temporal: Encoded dates, ``(N, 4)``; default is unknown.
            spatial: Encoded places, ``(N, 3)``; default is unknown.
        """
        given = (temporal, spatial)
        values = [
            like.new_zeros(len(like), width, dtype=self.meta_norm.weight.dtype)
            if value is None
            else value
            for value, width in zip(given, self.metadata_inputs.values(), strict=True)
        ]
        encoded = [self.meta_head_1(values[0]), self.meta_head_2(values[1])]
        logits: Tensor = self.meta_head(self.meta_norm(torch.cat(encoded, dim=1)))
        return logits

    def adapt_checkpoint(self, prefix: str, match: Match) -> None:
        """Keep the initial values of both heads if the file is for other classes."""
        super().adapt_checkpoint(prefix, match)
        keys = (f"{prefix}meta_head.weight", f"{prefix}meta_head.bias")
        given = match.state.get(keys[0])
        if self.num_classes and given is not None and len(given) != self.num_classes:
            own = self.meta_head.state_dict()
            match.keep_initial({key: own[key.rpartition(".")[2]] for key in keys})


def metadata_encoder(values: int) -> nn.Sequential:
    """Network that encodes a date or a place: ``(N, values) -> (N, 64)``."""
    return nn.Sequential(
        Linear(values, METADATA_WIDTH, init="trunc_normal"),
        nn.ReLU(),
        LayerNorm(METADATA_WIDTH, eps=_ENCODER_EPS),
        ResidualEncoder(METADATA_WIDTH),
    )


class ResidualEncoder(nn.Module):
    """Two linear layers with ReLU and LayerNorm, and a residual connection.

    Args:
        width: Width of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_fn1 = LayerNorm(width, eps=_ENCODER_EPS)
        self.norm_fn2 = LayerNorm(width, eps=_ENCODER_EPS)
        self.w1 = Linear(width, width, init="trunc_normal")
        self.w2 = Linear(width, width, init="trunc_normal")

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width) -> (N, width)``."""
        y = self.norm_fn1(self.w1(x).relu())
        out: Tensor = x + self.norm_fn2(self.w2(y).relu())
        return out
