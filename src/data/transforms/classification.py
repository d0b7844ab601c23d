"""Transforms of the official ImageNet recipe.

Training is timm's ``create_transform`` with the official arguments (RandomResizedCrop, flip,
RandAugment). Evaluation resizes the shorter side with PIL's bicubic filter and crops the centre;
the official crop ratio is 1.0, not the usual 0.875. Results have 8 bits: ``batches.py`` normalises
them on the device and erases rectangles. Mixup and CutMix belong to the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as auto_augment_ops
from timm.data.transforms import str_to_pil_interp
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms as tv

from src.errors import UserError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_MAX_ASPECT_RATIO = 16  # far more than what the centre crop keeps


@dataclass(frozen=True)
class Crop:
    """Region of an image, drawn before the image is decoded.

    Attributes:
        size: Width and height of the whole image in pixels.
        box: Left, top, right and bottom of the region, in pixels of the whole image.
        reduction: Factor by which the image may be reduced while it is decoded, 1 to 8, so that the
            region still has as many pixels as the network's input.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    reduction: int

    def resized(self, image: Image.Image, side: int, interpolation: Interpolation) -> Image.Image:
        """The region as a square of ``side`` pixels.

        Args:
            image: The RGB image at full size, or with sides divided by `reduction` and rounded up.
            side: Side of the result.
            interpolation: Filter, with antialiasing except for ``nearest``.
        """
        if image.size == self.size:
            return _resized(image.crop(self.box), side, interpolation)
        left, top, right, bottom = (value / self.reduction for value in self.box)
        # The region rarely begins and ends at whole pixels of the reduced image.
        corner = math.floor(left), math.floor(top)
        region = image.crop((*corner, math.ceil(right), math.ceil(bottom)))
        inner = (left - corner[0], top - corner[1], right - corner[0], bottom - corner[1])
        return region.resize((side, side), str_to_pil_interp(interpolation), box=inner)


def _resized(image: Image.Image, side: int, interpolation: Interpolation) -> Image.Image:
    if interpolation not in ("bilinear", "bicubic"):
        return image.resize((side, side), str_to_pil_interp(interpolation))
    # PyTorch has Pillow's filters with vector instructions. Rounding differs: most values are the
    # same, nearly all others differ by 1 of 255.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    resized = F.interpolate(pixels, (side, side), mode=interpolation, antialias=True)
    return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


def largest_reduction(width: int, height: int, wanted: int) -> int:
    """Largest factor of a JPEG decoder, 8, 4, 2 or 1, that leaves ``wanted`` pixels on both sides.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        wanted: Smallest side after the reduction.
    """
    return next((f for f in (8, 4, 2) if min(width, height) >= f * wanted), 1)


class TrainTransform:
    """Random crop, flip and colour policy. Normalisation and random erasing act on batches.

    Args:
        image_size: Height and width of the result in pixels.
        mean: Mean of each RGB channel, of values in [0, 1], which fills what a policy uncovers.
        interpolation: Filter of all geometric operations.
        crop_scale: Smallest and largest area of the random crop, relative to the image.
        crop_ratio: Smallest and largest width / height of the random crop.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of colour jitter; timm applies it only when ``auto_augment`` is off.
        auto_augment: Policy in timm's notation, or None.
        reduced_decoding: Whether a crop allows its image to be decoded at a reduced size.

    Raises:
        UserError: If timm does not know the policy.
    """

    def __init__(
        self,
        image_size: int,
        *,
        mean: tuple[float, float, float],
        interpolation: Interpolation = "bicubic",
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        reduced_decoding: bool = True,
    ) -> None:
        try:
            transform = create_transform(
                image_size,
                is_training=True,
                normalize=False,
                mean=mean,
                interpolation=interpolation,
                scale=crop_scale,
                ratio=crop_ratio,
                hflip=hflip,
                color_jitter=color_jitter,
                auto_augment=auto_augment or None,
                re_prob=0.0,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"timm cannot build the training transform with auto_augment={auto_augment!r} "
                f"({error or type(error).__name__}); expected a policy such as "
                '"rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", or null.'
            ) from error
        _let_posterize_reach_zero(transform)
        self._random_crop, *steps = transform.transforms
        self._steps = tv.Compose(steps)
        self.image_size, self.interpolation = image_size, interpolation
        self.reduced_decoding = reduced_decoding

    def draw(self, width: int, height: int) -> Crop:
        """Draw the crop of an image by timm's rule, given the size of its file.

        Args:
            width: Width of the whole image in pixels.
            height: Height of the whole image in pixels.
        """
        crop = self._random_crop
        shape_only = torch.empty((1, height, width), device="meta")
        top, left, rows, columns = crop.get_params(shape_only, crop.scale, crop.ratio)
        reduction = largest_reduction(columns, rows, self.image_size)
        return Crop(
            size=(width, height),
            box=(left, top, left + columns, top + rows),
            reduction=reduction if self.reduced_decoding else 1,
        )

    def __call__(self, image: Image.Image, crop: Crop | None = None) -> Tensor:
        """Transform an RGB image.

        Args:
            image: The image, at full size or reduced as its crop allows.
            crop: From `draw`; None draws one for an image at full size.

        Returns:
            uint8 tensor of shape ``(3, image_size, image_size)``.
        """
        crop = self.draw(*image.size) if crop is None else crop
        region = crop.resized(image, self.image_size, self.interpolation)
        return cast("Tensor", self._steps(region))


def _let_posterize_reach_zero(transform: tv.Compose) -> None:
    """Let timm's posterize keep 0 bits, in place.

    At magnitude 10 the "increasing" policies keep 0 bits, which gives a black image. Pillow 13
    raises an error for 0 bits, so the official policy rand-m9-mstd0.5-inc1 would stop training at a
    random step.
    """
    for step in transform.transforms:
        groups = [getattr(step, "ops", []), *getattr(step, "policy", [])]
        for op in (op for group in groups for op in group):
            if getattr(op, "aug_fn", None) is auto_augment_ops.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **kwargs: object) -> Image.Image:
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return cast("Image.Image", auto_augment_ops.posterize(image, bits_to_keep, **kwargs))


def shorten(image: Image.Image) -> Image.Image:
    """Crop the middle of a very long image, whose resized copy would exhaust the memory.

    Args:
        image: Any image; only one with an aspect ratio above 16 is cropped.
    """
    longest = _MAX_ASPECT_RATIO * min(image.size)
    left, top = (max(0, (side - longest) // 2) for side in image.size)
    if not left and not top:
        return image
    return image.crop((left, top, image.width - left, image.height - top))


class EvalTransform:
    """Shorter side to ``image_size / crop_pct``, centre crop; nothing random.

    Args:
        image_size: Height and width of the result in pixels.
        interpolation: Filter of the resize, with antialiasing as PIL does it.
        crop_pct: Side of the centre crop relative to the resized shorter side, in (0, 1]; official:
            1.0.
    """

    def __init__(
        self, image_size: int, *, interpolation: Interpolation = "bicubic", crop_pct: float = 1.0
    ) -> None:
        self._short_side = math.floor(image_size / crop_pct)
        steps = [
            shorten,
            tv.Resize(self._short_side, interpolation=tv.InterpolationMode(interpolation)),
            tv.CenterCrop(image_size),
            tv.PILToTensor(),
        ]
        self._steps = tv.Compose(steps)

    def reduction(self, width: int, height: int) -> int:
        """Factor by which an image may be reduced while it is decoded, 1 to 8."""
        return largest_reduction(width, height, self._short_side)

    def __call__(self, image: Image.Image) -> Tensor:
        """From an RGB image to a uint8 tensor of shape ``(3, image_size, image_size)``."""
        return cast("Tensor", self._steps(image))
