"""A segmentor: backbone, decode head and an optional auxiliary head.

Source: official InternImage models (OpenGVLab/InternImage, MIT), which use mmsegmentation's
encoder-decoder; the three attribute names are the prefixes of official checkpoints. Inference on
whole images is in ``inference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from src.errors import UserError
from src.models.graphs import Graph
from src.models.internimage.backbone import InternImageBackbone
from src.models.layers.precision import full_precision
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.graphs import segmentor_graph
from src.models.segmentation.head import SegmentationHead, resize
from src.models.segmentation.upernet import UPerHead

Outputs = Mapping[str, Tensor] | Mapping[str, list[Tensor]]
"""Outputs by name: ``out`` in evaluation, in training what the loss of the segmentor needs."""


class Segmentor(nn.Module):
    """Per-pixel class scores of images.

    The parts are factories: they get the widths of the backbone and the number of classes, and can
    be called on the meta device.

    Args:
        num_classes: Classes to score.
        backbone: Makes the backbone, a module with ``feature_info`` and one feature map per stage.
        decode_head: Makes the head from ``(in_channels, num_classes)``.
        auxiliary_head: Makes a second head, used in training only; ``None`` is none.
        num_outputs: Score maps of the heads. More than ``num_classes`` are for released weights
            with outputs that no class uses: those for Cityscapes have 150 for 19 classes. A pixel
            whose best output is none of the classes counts as wrong. Default: ``num_classes``.

    Raises:
        UserError: If there are fewer outputs than classes.
    """

    def __init__(
        self,
        num_classes: int = 150,
        backbone: Callable[[], InternImageBackbone] = InternImageBackbone,
        decode_head: Callable[[list[int], int], SegmentationHead] = UPerHead,
        auxiliary_head: Callable[[list[int], int], SegmentationHead] | None = FCNHead,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        outputs = num_classes if num_outputs is None else num_outputs
        if outputs < num_classes:
            raise UserError(
                f"num_outputs of the segmentor is {outputs}, but there are {num_classes} classes; "
                "expected at least as many outputs."
            )
        self.num_classes = num_classes
        self.backbone = backbone()
        stages = self.backbone.out_indices
        widths = [int(self.backbone.feature_info[i]["num_chs"]) for i in stages]
        self.decode_head = decode_head(in_channels=widths, num_classes=outputs)  # type: ignore[call-arg]
        self.auxiliary_head: SegmentationHead | None = None
        if auxiliary_head is not None:
            self.auxiliary_head = auxiliary_head(in_channels=widths, num_classes=outputs)  # type: ignore[call-arg]

    def forward(self, image: Tensor) -> Outputs:
        """Score every pixel.

        Args:
            image: Normalised images of shape ``(N, 3, H, W)``.

        Returns:
            Logits of shape ``(N, num_outputs, H, W)``: ``out`` of the decode head and, in training
            mode, ``aux`` of the auxiliary head.
        """
        features = self.backbone(image)
        size = (image.shape[-2], image.shape[-1])
        if not self.training:  # 16 bits are too few to compare the scores of classes
            return {"out": resize(full_precision(self.decode_head(features)), size)}
        heads = {"out": self.decode_head}
        if self.auxiliary_head is not None:
            heads["aux"] = self.auxiliary_head
        return {name: resize(head(features), size) for name, head in heads.items()}

    def export_graphs(self) -> list[Graph]:
        """The segmentor as one file; see ``graphs.py``."""
        return [segmentor_graph(self, "scores per pixel before the softmax")]
