"""DINO on InternImage, and CB-DINO on the composite backbone.

Sources: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object
Detection", ICLR 2023 (arXiv 2203.03605); Liang et al., "CBNet", TIP 2022 (arXiv 2107.00420); with
the constants of the official InternImage configurations ``dino_4scale_*`` (mmdet 2.28). Parameter
names are the official ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.models.detection.detector import Detector, Kind
from src.models.detection.dino.denoising import Denoising
from src.models.detection.dino.head import DINOHead
from src.models.detection.dino.transformer import DINOTransformer
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.composite import CBInternImageBackbone
from src.models.layers.deformable_encoder import LayerSizes
from src.models.necks.channel_mapper import ChannelMapper
from src.models.weights.match import Renames
from src.types import Detections, DetectionTarget, Size

LEVELS = 4
"""Maps that the encoder sees: those of the backbone and a coarser one."""
FIRST_WEIGHT = 0.5
"""Weight of the losses on the first backbone's maps."""


class _SetDetector(Detector):
    """What DINO and CB-DINO share: neck, head, and the way from maps to detections."""

    kinds: ClassVar[tuple[Kind, ...]] = ("bbox",)

    def __init__(
        self, backbone: nn.Module, depths: tuple[int, ...], neck: ChannelMapper, head: DINOHead
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.bbox_head = head
        self.depths = depths

    @torch.no_grad()
    def detect(
        self, image: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Detections of each image; see `Detector.forward`."""
        maps = self.neck(self.maps_for_detection(image))
        predictions = self.bbox_head(maps, (image.shape[2], image.shape[3]), sizes)
        return self.bbox_head.detect(predictions, sizes, original_sizes or sizes)

    def maps_for_detection(self, image: Tensor) -> list[Tensor]:
        """Maps of the backbone that the neck sees."""
        maps: list[Tensor] = self.backbone(image)
        return maps


class DINO(_SetDetector):
    """DINO with four maps.

    Args:
        num_classes: Classes.
        backbone: Makes the backbone; the recipes take its last three stages.
        channels: Width ``C`` of maps, pixels and queries, a larger multiple of 32.
        num_queries: Boxes that the decoder works on. Images with fewer pixels on all maps
            together (below about 200 pixels a side, for 900) have fewer.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        heads: Attention heads.
        points: Places that a head looks at on each map.
        hidden_channels: Width inside the feed-forward layers.
        ffn_parts: Parts that a feed-forward layer is stored in (4 in the released G).
        denoising_queries: Objects of all denoising groups together.
        max_detections: Detections per image.
    """

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
        trunk = backbone()
        widths = [trunk.stage_channels[i] for i in trunk.out_indices]
        layer = LayerSizes(channels, heads, LEVELS, points, hidden_channels, "uniform", ffn_parts)
        super().__init__(
            trunk,
            trunk.depths,
            ChannelMapper(widths, channels, LEVELS),
            DINOHead(
                num_classes,
                DINOTransformer(num_queries, encoder_layers, decoder_layers, layer),
                Denoising(num_classes, denoising_queries),
                max_detections,
            ),
        )

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> dict[str, Tensor]:
        """Losses by name; see `Detector.forward` and `DINOHead.losses`."""
        maps = self.neck(self.backbone(image))
        predictions = self.bbox_head(maps, (image.shape[2], image.shape[3]), sizes, targets)
        found: dict[str, Tensor] = self.bbox_head.losses(predictions, targets, sizes)
        return found


class CBDINO(_SetDetector):
    """DINO on two backbones; one neck and one head learn on the maps of both.

    In training the images go through the head twice, with the maps of either backbone; losses of
    the first get weight 0.5. Detections use the second alone. Any batch size works, where the
    official code silently expects one image per device.

    Args:
        num_classes: Classes.
        backbone: Makes the composite backbone.
        channels: See `DINO`, as the other arguments.
    """

    official_renames: ClassVar[Renames] = ((r"^neck\.", "neck.0."),)

    def __init__(
        self,
        num_classes: int = 80,
        backbone: Callable[[], CBInternImageBackbone] = CBInternImageBackbone,
        channels: int = 256,
        num_queries: int = 900,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        heads: int = 8,
        points: int = 4,
        hidden_channels: int = 2048,
        denoising_queries: int = 1000,
        max_detections: int = 300,
    ) -> None:
        trunk = backbone()
        layer = LayerSizes(channels, heads, LEVELS, points, hidden_channels, "uniform")
        super().__init__(
            trunk,
            trunk.depths,
            ChannelMapper(trunk.out_channels, channels, LEVELS),
            DINOHead(
                num_classes,
                DINOTransformer(num_queries, encoder_layers, decoder_layers, layer),
                Denoising(num_classes, denoising_queries),
                max_detections,
            ),
        )

    def maps_for_detection(self, image: Tensor) -> list[Tensor]:
        """Maps of the second backbone."""
        maps: list[Tensor] = self.backbone(image)[1]
        return maps

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> dict[str, Tensor]:
        """Losses by name with suffix ``0_w0.5`` for the first backbone and ``1`` for the second."""
        first, second = (self.neck(maps) for maps in self.backbone(image))
        maps = [torch.cat([a, b]) for a, b in zip(first, second, strict=True)]
        twice_sizes, twice_targets = [*sizes, *sizes], [*targets, *targets]
        size = (image.shape[2], image.shape[3])
        predictions = self.bbox_head(maps, size, twice_sizes, twice_targets)
        count = len(sizes)
        halves = predictions.part(0, count), predictions.part(count, 2 * count)
        ours, theirs = (self.bbox_head.losses(half, targets, sizes) for half in halves)
        weighted = {
            f"{name}0_w{FIRST_WEIGHT}": FIRST_WEIGHT * value for name, value in ours.items()
        }
        return weighted | {f"{name}1": value for name, value in theirs.items()}
