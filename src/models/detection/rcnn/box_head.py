"""Box head: class and box of every region.

It has two fully connected layers in Mask R-CNN, and four convolutions with BatchNorm and one fully
connected layer in Cascade Mask R-CNN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.layers.conv import ClassLinear, ConvUnit
from src.models.layers.linear import Linear
from src.models.layers.precision import full_precision

BOX_ROI_SIDE = 7


class BoxHead(nn.Module):
    """Class logits and one box offset per class from the features of regions.

    Args:
        num_classes: Classes without background ``C``.
        channels: Width of the features.
        fc_channels: Width of the fully connected layers.
        num_convs: Shared 3x3 convolutions with BatchNorm before them.
        num_fcs: Shared fully connected layers.
        class_agnostic: Predict one box offset for all classes.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 256,
        fc_channels: int = 1024,
        *,
        num_convs: int = 0,
        num_fcs: int = 2,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc_cls = ClassLinear(fc_channels, num_classes + 1, init=0.01)
        self.fc_reg: Linear = (
            Linear(fc_channels, 4, init=0.001)
            if class_agnostic
            else ClassLinear(fc_channels, num_classes * 4, init=0.001)
        )
        self.shared_convs = nn.ModuleList(
            ConvUnit(channels, channels, 3, norm=True) for _ in range(num_convs)
        )
        widths = [channels * BOX_ROI_SIDE**2] + [fc_channels] * num_fcs
        self.shared_fcs = nn.ModuleList(
            Linear(widths[i], widths[i + 1], init="xavier") for i in range(num_fcs)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predict for ``R`` regions.

        Args:
            features: ``(R, channels, 7, 7)``.

        Returns:
            Logits ``(R, C + 1)``, background last, and offsets ``(R, C, 4)``.
        """
        x = features
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for fc in self.shared_fcs:
            x = F.relu(fc(x))
        offsets = full_precision(self.fc_reg(x)).unflatten(1, (-1, 4))
        return full_precision(self.fc_cls(x)), offsets.expand(-1, self.num_classes, 4)


def offsets_of_class(offsets: Tensor, labels: Tensor) -> Tensor:
    """Offsets ``(R, C, 4)`` of one class per region, ``(R, 4)``."""
    return offsets[torch.arange(len(labels), device=labels.device), labels]
