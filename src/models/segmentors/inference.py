"""From scores to probabilities of a picture at its own size: whole, sliding, several views.

Source: mmsegmentation 0.27 as the official InternImage models use it. The order of operations
matters for the numbers: scores are resized to the network's input, cropped to the part that holds
the picture, resized to the picture's own size, and only then turned into probabilities; views are
averaged as probabilities. Mask2Former's scores are sums of probabilities already and become
probabilities in the same way, as officially.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.heads.segmentation import resize


@dataclass(frozen=True)
class SlidingWindow:
    """Windows that cover an image one after the other.

    Attributes:
        crop_size: Height and width of a window in pixels of the network's input.
        stride: Vertical and horizontal step, at most ``crop_size``, so that nothing is left out.

    Raises:
        UserError: If a stride is below 1 or larger than the window.
    """

    crop_size: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        """Check the values."""
        for side, step in zip(self.crop_size, self.stride, strict=True):
            if not 1 <= step <= side:
                raise UserError(
                    "The stride of sliding inference must be at least 1 and at most the window, "
                    f"got crop_size={self.crop_size} and stride={self.stride}."
                )

    def starts(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Top-left corners of the windows over an image of ``size``; the last ones stay inside."""
        rows, columns = (
            [min(i * step, max(full - side, 0)) for i in range(-(-max(full - side, 0) // step) + 1)]
            for full, side, step in zip(size, self.crop_size, self.stride, strict=True)
        )
        return [(y, x) for y in rows for x in columns]


def slide_logits(network: nn.Module, image: Tensor, window: SlidingWindow) -> Tensor:
    """Scores of every window, averaged where windows overlap.

    Args:
        network: `Segmentor` in evaluation mode.
        image: Normalised images of shape ``(N, 3, H, W)``.
        window: Windows and steps.

    Returns:
        Logits of shape ``(N, num_classes, H, W)``.
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = image.new_zeros((1, 1, height, width))
    for y, x in window.starts((height, width)):
        patch = (..., slice(y, y + window.crop_size[0]), slice(x, x + window.crop_size[1]))
        logits: Tensor = network(image[patch])["out"]
        if total is None:
            total = logits.new_zeros((*logits.shape[:2], height, width))
        total[patch] += logits
        count[patch] += 1
    if total is None:  # no image side is empty, so this cannot happen with real pictures
        raise UserError(f"An image of {height}x{width} pixels cannot be segmented.")
    return total / count


def picture_probabilities(
    network: nn.Module,
    views: Sequence[Tensor],
    size: tuple[int, int],
    *,
    flipped: Sequence[bool] | None = None,
    content_size: tuple[int, int] | None = None,
    window: SlidingWindow | None = None,
) -> Tensor:
    """Class probabilities of pictures, averaged over their views.

    Args:
        network: `Segmentor` in evaluation mode.
        views: The same pictures prepared in one or more ways, each ``(N, 3, h_v, w_v)``.
        size: Height and width of the result, the pictures' own size.
        flipped: Which views are mirrored left to right; default is none.
        content_size: Height and width of the top-left part of each view that holds the picture,
            if views are padded; default is all of it.
        window: Sliding inference; default scores each view as a whole.

    Returns:
        Probabilities of shape ``(N, num_classes, *size)``, float32 (float64 for float64 views).
    """
    total: Tensor | None = None
    for view, mirror in zip(views, flipped or [False] * len(views), strict=True):
        logits = network(view)["out"] if window is None else slide_logits(network, view, window)
        if not torch.is_floating_point(logits) or logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if content_size is not None:
            logits = logits[..., : content_size[0], : content_size[1]]
        probabilities = resize(logits, size).softmax(dim=1)
        probabilities = probabilities.flip(-1) if mirror else probabilities
        total = probabilities if total is None else total + probabilities
    if total is None:
        raise UserError("A picture needs at least one view to be segmented.")
    return total / len(views)
