"""FCN head: convolutions on one stage and class scores; auxiliary head in training of UPerNet.

Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015; widths and
attribute names as in the official InternImage models (mmsegmentation 0.27, no concatenated input).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.conv import ClassConv2d
from src.models.segmentation.head import SegmentationHead, conv_norm_relu


class FCNHead(SegmentationHead):
    """Class scores from the feature map of one stage.

    Args:
        in_channels: Width of each feature map, finest first.
        num_classes: Classes to score.
        channels: Width of the convolutions; official: 256.
        in_index: Index of the stage.
        num_convs: Number of 3x3 convolutions, at least 1.
        dropout: Probability to drop a whole channel before the class scores, in [0, 1).

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 150,
        channels: int = 256,
        in_index: int = 2,
        num_convs: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= in_index < len(in_channels):
            raise UserError(
                f"in_index of FCNHead must be a stage, 0 to {len(in_channels) - 1}, got {in_index}."
            )
        if channels < 1 or num_classes < 1 or num_convs < 1:
            raise UserError(
                "FCNHead needs channels, num_classes and num_convs of at least 1, got "
                f"channels={channels}, num_classes={num_classes}, num_convs={num_convs}."
            )
        self.in_index = in_index
        widths = [in_channels[in_index], *[channels] * num_convs]
        self.convs = nn.Sequential(
            *(conv_norm_relu(widths[i], widths[i + 1], 3) for i in range(num_convs))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = ClassConv2d(channels, num_classes, 1, init=0.01)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """See `SegmentationHead`; logits have the size of feature map ``in_index``."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(features[self.in_index])))
        return logits
