"""DINO on InternImage, and CB-DINO on the composite backbone.

Sources: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object
Detection", ICLR 2023 (arXiv 2203.03605); Liang et al., "CBNet", TIP 2022 (arXiv 2107.00420); with
the constants of the official InternImage configurations ``dino_4scale_*`` (mmdet 2.28). Parameter
names are the official ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from src.models.detection.detection_transformer import DetectionTransformer
from src.models.detection.detector import TrainingOutput
from src.models.detection.dino.denoising import Denoising
from src.models.detection.dino.graphs import dino_graph
from src.models.detection.dino.head import DINOHead
from src.models.detection.dino.transformer import DINOTransformer
from src.models.graphs import Graph
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.composite import CBInternImageBackbone
from src.models.layers.deformable_encoder import LayerSizes
from src.models.necks.channel_mapper import ChannelMapper
from src.models.weights.match import Renames
from src.types import DetectionTarget, Size

LEVELS = 4
"""Number of feature maps of the encoder: those of the backbone and a coarser one."""
ASSIST_WEIGHT = 0.5
"""Weight of the losses on the features of the assisting backbone."""


class DINO(DetectionTransformer):
    """DINO with four feature maps.

    Args:
        num_classes: Classes.
        backbone: Makes the backbone; the recipes take its last three stages.
        channels: Width ``C`` of feature maps, tokens and queries, a larger multiple of 32.
        num_queries: Queries of the decoder. Images with fewer pixels on all feature maps together
            (below about 200 pixels a side, for 900) have fewer.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        heads: Attention heads.
        points: Sampling locations per head and feature map.
        hidden_channels: Width inside the feed-forward layers.
        ffn_parts: Parts that a feed-forward layer is stored in (4 in the released G).
        denoising_queries: Ground-truth boxes in all denoising groups together.
        max_detections: Detections per image.
    """

    bbox_head: DINOHead

    def __init__(
        self,
        num_classes: int = 80,
        backbone: Callable[[], InternImageBackbone] = InternImageBackbone,
        channels: int = 256,
        num_queries: int = 900,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        heads: int = 8,
        points: int = 4,
        hidden_channels: int = 2048,
        ffn_parts: int = 1,
        denoising_queries: int = 100,
        max_detections: int = 300,
    ) -> None:
        network = backbone()
        layer = LayerSizes(channels, heads, LEVELS, points, hidden_channels, "uniform", ffn_parts)
        super().__init__(
            network,
            ChannelMapper(network.out_channels, channels, LEVELS),
            DINOHead(
                num_classes,
                DINOTransformer(num_queries, encoder_layers, decoder_layers, layer),
                Denoising(num_classes, denoising_queries),
                max_detections,
            ),
            network.depths,
        )

    def export_graphs(self) -> list[Graph]:
        """One file with all queries; see ``graphs.py``."""
        return [dino_graph(self)]


class CBDINO(DINO):
    """DINO on a composite backbone; one neck and one head are trained on both sets of features.

    In training the head sees every image twice, with the features of the assisting and of the lead
    backbone; losses of the former have weight 0.5. Detections use the lead backbone alone. Any
    batch size works, where the official code silently expects one image per device.

    Args:
        num_classes: Classes.
        backbone: Makes the composite backbone.
        denoising_queries: See `DINO`.
        kwargs: Further arguments of `DINO`.
    """

    official_renames: ClassVar[Renames] = ((r"^neck\.", "neck.0."),)

    def __init__(
        self,
        num_classes: int = 80,
        backbone: Callable[[], CBInternImageBackbone] = CBInternImageBackbone,
        denoising_queries: int = 1000,
        **kwargs: Any,
    ) -> None:
        # It has all attributes that `DINO` uses.
        make = cast("Callable[[], InternImageBackbone]", backbone)
        super().__init__(num_classes, make, denoising_queries=denoising_queries, **kwargs)

    def neck_inputs(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the lead backbone."""
        features: list[Tensor] = self.backbone(image)[1]
        return features

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> TrainingOutput:
        """Losses with the suffix ``0_w0.5`` for the assisting and ``1`` for the lead backbone."""
        assist, lead = (self.neck(features) for features in self.backbone(image))
        features = [torch.cat(pair) for pair in zip(assist, lead, strict=True)]
        size = (image.shape[2], image.shape[3])
        predictions = self.bbox_head(features, size, [*sizes, *sizes], [*targets, *targets])
        count = len(sizes)
        assist_losses = self.bbox_head.losses(predictions.part(0, count), targets, sizes)
        lead_losses = self.bbox_head.losses(predictions.part(count, 2 * count), targets, sizes)
        weighted = {
            f"{name}0_w{ASSIST_WEIGHT}": ASSIST_WEIGHT * loss
            for name, loss in assist_losses.items()
        }
        return TrainingOutput(weighted | {f"{k}1": v for k, v in lead_losses.items()}, {})
