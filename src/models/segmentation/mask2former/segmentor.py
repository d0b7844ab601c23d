"""Mask2Former: a segmentor whose queries each predict one class and its mask.

In evaluation it scores every pixel, as `Segmentor` does, and inference on whole images is the
same (``inference.py``). In training it returns what the loss over sets of masks needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast

from torch import Tensor

from src.models.graphs import Graph
from src.models.internimage.backbone import InternImageBackbone
from src.models.segmentation.graphs import segmentor_graph
from src.models.segmentation.head import resize
from src.models.segmentation.mask2former.head import Mask2FormerHead, class_map
from src.models.segmentation.segmentor import Outputs, Segmentor


class Mask2Former(Segmentor):
    """Classes and masks of a set of queries.

    Train it with the loss ``src.losses.mask_set.MaskSetLoss``.

    Args:
        num_classes: Classes to score.
        backbone: See `Segmentor`.
        decode_head: Makes the head from ``(in_channels, num_classes)``.
    """

    has_queries: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int = 150,
        backbone: Callable[[], InternImageBackbone] = InternImageBackbone,
        decode_head: Callable[[list[int], int], Mask2FormerHead] = Mask2FormerHead,
    ) -> None:
        super().__init__(num_classes, backbone, decode_head, auxiliary_head=None)

    def forward(self, image: Tensor) -> Outputs:
        """Score every pixel or, in training, predict classes and masks.

        Args:
            image: Normalised images of shape ``(N, 3, H, W)``.

        Returns:
            ``class_logits`` of shape ``(N, Q, num_classes + 1)``, no object last, and
            ``mask_logits`` of shape ``(N, Q, ceil(H / 4), ceil(W / 4))``: in training lists, for
            the initial queries and after each decoder layer, in evaluation of the last layer. In
            evaluation also ``out``: scores of shape ``(N, num_classes, H, W)``.
        """
        features = self.backbone(image)
        head = cast("Mask2FormerHead", self.decode_head)
        if not self.training:
            ((classes, masks),) = head.predict(features, every_layer=False)
            scores = resize(class_map(classes, masks), (image.shape[-2], image.shape[-1]))
            return {"out": scores, "class_logits": classes, "mask_logits": masks}
        predictions = head.predict(features)
        return {
            "class_logits": [classes for classes, _ in predictions],
            "mask_logits": [masks for _, masks in predictions],
        }

    def export_graphs(self) -> list[Graph]:
        """The segmentor as one file; see `Segmentor.export_graphs`."""
        logits = "scores per pixel: masks times class probabilities, summed over the queries"
        return [segmentor_graph(self, logits)]
