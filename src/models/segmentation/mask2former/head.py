"""Mask2Former head: queries that each predict one class and its mask.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022 (arXiv 2112.01527); order of operations, attribute names and initialisation as in the official
InternImage models (mmdet 2.28 inside mmsegmentation 0.27).

Scores per pixel have the resolution of the first stage: the official code upsamples the class
scores, where the original Mask2Former upsamples the masks. Panoptic segments and instances are in
``segments.py``, losses in ``src.losses.mask_set``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.compilation import RepeatedPart
from src.models.layers.conv import ClassOutput
from src.models.layers.precision import full_precision
from src.models.layers.transformer import (
    FEED_FORWARD_RENAMES,
    FeedForward,
    MultiheadAttention,
    sine_positions,
)
from src.models.segmentation.head import SegmentationHead, resize
from src.models.segmentation.mask2former.pixel_decoder import PixelDecoder
from src.models.weights.match import Renames

Prediction = tuple[Tensor, Tensor]
"""Class logits ``(N, Q, K + 1)``, no object last, and mask logits ``(N, Q, H, W)``."""


class ClassEmbedding(ClassOutput, nn.Linear):
    """Linear layer to class scores."""


class MaskedAttentionLayer(RepeatedPart):
    """Masked cross-attention to pixels, self-attention of queries, a feed-forward layer.

    Args:
        channels: Width ``C`` of queries and pixels.
        heads: Attention heads.
        hidden_channels: Width inside the feed-forward layer.
    """

    official_renames: ClassVar[Renames] = (
        (r"^cross_attention\.", "attentions.0.attn."),
        (r"^self_attention\.", "attentions.1.attn."),
        *FEED_FORWARD_RENAMES,
    )

    def __init__(self, channels: int, heads: int, hidden_channels: int) -> None:
        super().__init__()
        self.cross_attention = MultiheadAttention(channels, heads)
        self.self_attention = MultiheadAttention(channels, heads)
        self.ffn = FeedForward(channels, hidden_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def compute(
        self,
        queries: Tensor,
        query_positions: Tensor,
        pixels: Tensor,
        pixel_positions: Tensor,
        attn_mask: Tensor,
    ) -> Tensor:
        """Refine the queries.

        Args:
            queries: ``(N, Q, C)``.
            query_positions: Learned positions, ``(Q, C)``.
            pixels: ``(N, S, C)``.
            pixel_positions: ``(S, C)``.
            attn_mask: True where a query attends to a pixel, ``(N, Q, S)``.

        Returns:
            ``(N, Q, C)``.
        """
        attended = self.cross_attention(
            queries + query_positions, pixels + pixel_positions, pixels, attn_mask
        )
        queries = self.norms[0](queries + attended)
        placed = queries + query_positions
        queries = self.norms[1](queries + self.self_attention(placed, placed, queries))
        out: Tensor = self.norms[2](queries + self.ffn(queries))
        return out


class QueryDecoder(nn.Module):
    """A stack of `MaskedAttentionLayer`, and the norm before predictions.

    Args:
        num_layers: Number of layers.
        channels: See `MaskedAttentionLayer`.
        heads: See `MaskedAttentionLayer`.
        hidden_channels: See `MaskedAttentionLayer`.
    """

    def __init__(self, num_layers: int, channels: int, heads: int, hidden_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MaskedAttentionLayer(channels, heads, hidden_channels) for _ in range(num_layers)
        )
        self.post_norm = nn.LayerNorm(channels)


class Mask2FormerHead(SegmentationHead):
    """Classes and masks from the feature maps of all stages.

    The defaults are those of the official models for ADE20K and COCO-Stuff.

    Args:
        in_channels: Width of each feature map, finest first, at least two.
        num_classes: Classes to score.
        channels: Width of pixels and queries, a multiple of 4 and of ``heads``.
        num_queries: Queries, the largest number of classes that can be found in one image.
        heads: Attention heads.
        points: Sampling locations per head and feature map in the pixel decoder.
        encoder_layers: Layers of the pixel decoder.
        decoder_layers: Layers that refine the queries.
        encoder_hidden: Width inside the feed-forward layers of the pixel decoder.
        decoder_hidden: Width inside the feed-forward layers of the query decoder.
        norm_groups: Groups of the pixel decoder's GroupNorms, a divisor of ``channels``.

    Raises:
        UserError: If a number is out of range or the widths do not fit together.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 150,
        channels: int = 1024,
        num_queries: int = 200,
        heads: int = 32,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        encoder_hidden: int = 4096,
        decoder_hidden: int = 4096,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        counts = {
            "channels": channels,
            "num_queries": num_queries,
            "heads": heads,
            "points": points,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "encoder_hidden": encoder_hidden,
            "decoder_hidden": decoder_hidden,
            "norm_groups": norm_groups,
            "num_classes": num_classes,
        }
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"Mask2FormerHead needs {name} of at least 1, got {count}.")
        self.channels = channels
        self.pixel_decoder = PixelDecoder(
            in_channels, channels, encoder_layers, heads, points, encoder_hidden, norm_groups
        )
        self.transformer_decoder = QueryDecoder(decoder_layers, channels, heads, decoder_hidden)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.query_feat = nn.Embedding(num_queries, channels)
        self.level_embed = nn.Embedding(len(in_channels) - 1, channels)
        self.cls_embed = ClassEmbedding(channels, num_classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """See `SegmentationHead`; scores, not logits, at the size of the finest feature map."""
        (prediction,) = self.predict(features, every_layer=False)
        return class_map(*prediction)

    def predict(self, features: Sequence[Tensor], *, every_layer: bool = True) -> list[Prediction]:
        """Classes and masks of all queries.

        Args:
            features: As in `forward`.
            every_layer: Return the predictions of the initial queries and of each layer, for
                training; otherwise only the last.

        Returns:
            Predictions, last layer last; masks have the size of the finest feature map.
        """
        pixel_features, memory = self.pixel_decoder(features)
        sizes = [(x.shape[-2], x.shape[-1]) for x in memory]
        pixels = [
            x.flatten(2).transpose(1, 2) + level
            for x, level in zip(memory, self.level_embed.weight, strict=True)
        ]  # (N, S, C)
        positions = [sine_positions(size, self.channels, pixel_features) for size in sizes]
        queries = self.query_feat.weight.expand(pixel_features.shape[0], -1, -1)
        predictions = [self._predict(queries, pixel_features)]
        for i, layer in enumerate(self.transformer_decoder.layers):
            level = i % len(sizes)
            attn_mask = attention_mask(predictions[-1][1], sizes[level])
            queries = layer(
                queries, self.query_embed.weight, pixels[level], positions[level], attn_mask
            )
            if not every_layer:
                predictions.clear()
            predictions.append(self._predict(queries, pixel_features))
        return predictions

    def _predict(self, queries: Tensor, pixel_features: Tensor) -> Prediction:
        normed = self.transformer_decoder.post_norm(queries)
        masks = torch.einsum("nqc,nchw->nqhw", self.mask_embed(normed), pixel_features)
        return self.cls_embed(normed), masks


@torch.no_grad()
def attention_mask(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels inside the masks of queries; a query with an empty mask attends to all pixels.

    Args:
        mask_logits: ``(N, Q, H, W)``.
        size: Height and width of the feature map that the queries attend to.

    Returns:
        True where a query attends to a pixel, ``(N, Q, height * width)``.
    """
    inside = resize(mask_logits, size).flatten(2).sigmoid() >= 0.5
    return inside | ~inside.any(dim=-1, keepdim=True)


def class_map(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Score of each class at each pixel: masks weighted by the class probabilities.

    Args:
        class_logits: ``(N, Q, K + 1)``.
        mask_logits: ``(N, Q, H, W)``.

    Returns:
        Scores of shape ``(N, K, H, W)``, at least 0. They are never of 16 bits, in which the sum
        over 200 queries would change classes. The scores of a pixel do not sum to 1.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        classes = full_precision(class_logits).softmax(dim=-1)[..., :-1]
        masks = full_precision(mask_logits).sigmoid()
        return torch.einsum("nqk,nqhw->nkhw", classes.to(masks.dtype), masks)
