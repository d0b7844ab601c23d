"""Cross entropy per pixel, of the decode head and of the auxiliary head.

Source: mmsegmentation 0.27 as the official InternImage models use it. It divides by the number of
*all* pixels, ignored ones included, so that crops with few labelled pixels have a small weight. The
alternative is the mean over labelled pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.types import IGNORE_LABEL


def pixel_cross_entropy(
    logits: Tensor, label: Tensor, average: Literal["all", "labelled"] = "all"
) -> Tensor:
    """Mean cross entropy over pixels.

    Args:
        logits: Scores of shape ``(N, K, H, W)``.
        label: Classes in ``[0, K)`` or 255, int64, shape ``(N, H, W)``.
        average: Divide by the number of all pixels (official) or of the labelled ones.

    Returns:
        Scalar; 0, with zero gradients, if no pixel is labelled.
    """
    total = F.cross_entropy(logits, label, ignore_index=IGNORE_LABEL, reduction="sum")
    if average == "all":
        return total / label.numel()
    return total / (label != IGNORE_LABEL).sum().clamp(min=1)


class SegmentationLoss(nn.Module):
    """Loss of a segmentor's outputs.

    Args:
        average: Pixels that the mean counts: ``"all"`` (official) or the ``"labelled"`` ones.
        aux_weight: Weight of the auxiliary head; official: 0.4.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, average: Literal["all", "labelled"] = "all", aux_weight: float = 0.4
    ) -> None:
        super().__init__()
        if average not in ("all", "labelled"):
            raise UserError(f'The loss average accepts "all" or "labelled", got {average!r}.')
        if aux_weight < 0:
            raise UserError(f"aux_weight must be 0 or more, got {aux_weight}.")
        self.average = average
        self.aux_weight = aux_weight

    def forward(self, outputs: Mapping[str, Tensor], label: Tensor) -> dict[str, Tensor]:
        """Weighted losses by head.

        Args:
            outputs: Logits ``out`` and, optionally, ``aux``, each ``(N, K, H, W)``.
            label: Classes or 255, int64, shape ``(N, H, W)``.

        Returns:
            Scalars ``loss_decode`` and, with ``aux``, ``loss_aux``; training minimises their sum.

        Raises:
            UserError: If the outputs have no scores per pixel.
        """
        if "out" not in outputs:
            raise UserError(
                "The cross entropy per pixel needs scores per pixel, got outputs "
                f"{', '.join(outputs)}; set model.loss to the network's own loss, for Mask2Former "
                "src.losses.mask_set.MaskSetLoss."
            )
        losses = {"loss_decode": pixel_cross_entropy(outputs["out"], label, self.average)}
        if "aux" in outputs:
            auxiliary = pixel_cross_entropy(outputs["aux"], label, self.average)
            losses["loss_aux"] = self.aux_weight * auxiliary
        return losses
