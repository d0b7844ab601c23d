"""Transformer of DINO: encoder over all feature maps, query selection, decoder.

Source: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object
Detection", ICLR 2023 (arXiv 2203.03605), section 3; details are those of the official InternImage
configurations ``dino_4scale_*`` (mmdet 2.28). Boxes are centre and size in [0, 1] of each image
without padding; ``box_logits`` are boxes before the sigmoid.

Class and box predictions come from the branches of the head (``head.py``), one for each decoder
layer and a last one for the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.models.detection.dino.decoder import DINODecoder
from src.models.detection.dino.padding import Padding, padded_positions
from src.models.layers.deformable_encoder import Encoder, LayerSizes
from src.models.layers.linear import XavierLinear
from src.models.layers.precision import full_precision

PIXEL_TEMPERATURE = 20.0


@dataclass
class EncoderProposals:
    """Boxes of the best pixels of the encoder; all with gradients.

    Attributes:
        logits: Class logits, ``(N, K, classes)``.
        box_logits: Boxes, ``(N, K, 4)``.
        index: Index of each pixel, ``(N, K)``.
    """

    logits: Tensor
    box_logits: Tensor
    index: Tensor


@dataclass
class DenoisingQueries:
    """Denoising queries, which precede the matching queries.

    Attributes:
        content: ``(N, P, C)``.
        box_logits: Noisy boxes, ``(N, P, 4)``.
        attn_mask: True where the query of a row attends to that of a column,
            ``(1, P + K, P + K)``.
    """

    content: Tensor
    box_logits: Tensor
    attn_mask: Tensor


class DINOTransformer(nn.Module):
    """Encoder, query selection, decoder.

    Args:
        num_queries: Queries of the decoder; fewer where a batch has fewer pixels.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        layer: Sizes of each layer.
    """

    def __init__(
        self, num_queries: int, encoder_layers: int, decoder_layers: int, layer: LayerSizes
    ) -> None:
        super().__init__()
        channels = layer.channels
        self.num_queries = num_queries
        self.level_embeds = nn.Parameter(torch.empty(layer.levels, channels))
        self.encoder = Encoder(encoder_layers, layer)
        self.decoder = DINODecoder(decoder_layers, layer)
        self.enc_output = XavierLinear(channels, channels, "uniform")
        self.enc_output_norm = nn.LayerNorm(channels)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the level embeddings; the submodules initialise themselves."""
        nn.init.normal_(self.level_embeds)

    def encode(self, features: Sequence[Tensor], padding: Padding) -> Tensor:
        """Encode the pixels of all feature maps ``(N, C, H_i, W_i)`` together: ``(N, S, C)``."""
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
        positions = torch.cat(
            [
                padded_positions(mask, tokens.shape[2], PIXEL_TEMPERATURE, tokens)
                + self.level_embeds[i]
                for i, mask in enumerate(padding.masks)
            ],
            dim=1,
        ).to(tokens.dtype)
        encoded: Tensor = self.encoder(
            tokens, positions, padding.references(), padding.sizes, padding.tokens
        )
        return encoded

    def propose(
        self,
        memory: Tensor,
        padding: Padding,
        cls_branch: nn.Module,
        reg_branch: nn.Module,
        index: Tensor | None = None,
    ) -> EncoderProposals:
        """Take the pixels with the highest class logits as proposals.

        Padding, and pixels whose initial box crosses the border, are zeroed before the branches:
        all of them have the same logits, and 1 as every coordinate of their box.

        Args:
            memory: Result of `encode`.
            padding: Padding of the feature maps.
            cls_branch: Predicts the class logits of a pixel.
            reg_branch: Predicts the change of the initial box of a pixel.
            index: Pixels to take instead of the best ones, ``(N, K)``.
        """
        initial = padding.initial_boxes()
        is_inside = ((initial > 0.01) & (initial < 0.99)).all(-1, keepdim=True)
        is_usable = is_inside & ~padding.tokens[..., None]
        initial = torch.where(is_usable, torch.log(initial / (1 - initial)), torch.inf)
        pixels = self.enc_output_norm(self.enc_output(memory.masked_fill(~is_usable, 0.0)))
        logits: Tensor = full_precision(cls_branch(pixels))
        boxes = full_precision(reg_branch(pixels)) + initial
        if index is None:
            count = min(self.num_queries, logits.shape[1])
            index = logits.amax(-1).topk(count, dim=1).indices
        return EncoderProposals(
            logits.gather(1, index[..., None].expand(-1, -1, logits.shape[2])),
            boxes.gather(1, index[..., None].expand(-1, -1, 4)),
            index,
        )

    def decode(
        self,
        memory: Tensor,
        padding: Padding,
        proposals: EncoderProposals,
        noisy: DenoisingQueries | None,
        reg_branches: nn.ModuleList,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Refine the proposals, preceded by the denoising queries; see `DINODecoder`.

        The initial content of the queries is learned and the same for every image; only their boxes
        come from the encoder.
        """
        box_logits = proposals.box_logits.detach()
        batch, count, _ = box_logits.shape
        queries = self.query_embed.weight[:count].expand(batch, -1, -1)
        if noisy is not None:
            queries = torch.cat([noisy.content, queries], dim=1)
            box_logits = torch.cat([noisy.box_logits, box_logits], dim=1)
        attn_mask = None if noisy is None else noisy.attn_mask
        states, references = self.decoder(
            queries, box_logits.sigmoid(), memory, padding, attn_mask, reg_branches
        )
        return states, references
