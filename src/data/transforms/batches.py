"""Transforms of whole batches of images on the device: normalisation and random erasing.

Data loader workers return 8-bit images, a quarter of the bytes of float32 images.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

Triple = tuple[float, float, float]
ErasingMode = Literal["const", "rand", "pixel"]


class Normalization:
    """``(value / 255 - mean) / std`` of each RGB channel.

    Args:
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(self, mean: Triple, std: Triple) -> None:
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """From uint8 ``(..., 3, H, W)`` to contiguous float32; other images are returned as is."""
        if image.dtype != torch.uint8:
            return image
        if self.mean.device != image.device:
            self.mean, self.std = self.mean.to(image.device), self.std.to(image.device)
        values = image.to(torch.float32, memory_format=torch.contiguous_format)
        return values.div_(255).sub_(self.mean).div_(self.std)

    def inverse(self, image: Tensor) -> Tensor:
        """From normalised images ``(..., 3, H, W)`` to uint8."""
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        return image.mul(std).add(mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def clear_padding(image: Tensor, size: Tensor) -> Tensor:
    """Set what lies outside of each image to zero, in place.

    Args:
        image: Images ``(N, 3, H, W)``, padded on the right and at the bottom.
        size: Height and width of each without padding, ``(N, 2)``.
    """
    height, width = size.to(image.device)[:, :, None].unbind(1)  # (N, 1) each
    rows, columns = (torch.arange(side, device=image.device) for side in image.shape[-2:])
    inside = (rows < height)[:, None, :, None] & (columns < width)[:, None, None, :]
    return image.masked_fill_(~inside, 0)


class Erasing:
    """Random erasing of normalised images, each on its own, as in timm.

    Args:
        probability: Probability that an image is erased.
        mode: Filling of the rectangle: zeros, one random colour, or a random colour per pixel.
        count: Largest number of rectangles.
    """

    def __init__(self, probability: float, mode: ErasingMode = "pixel", count: int = 1) -> None:
        self.probability, self.mode, self.count = probability, mode, count

    def __call__(self, image: Tensor) -> Tensor:
        """Erase rectangles of images ``(N, 3, H, W)`` in place.

        Rectangles are drawn by Python's generator, colours by that of the device.
        """
        if self.probability > 0:
            RandomErasing(
                self.probability, mode=self.mode, max_count=self.count, device=image.device
            )(image)
        return image
