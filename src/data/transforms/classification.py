"""Transforms of the official ImageNet recipe.

Training is timm's ``create_transform`` with the official arguments (RandomResizedCrop, flip,
RandAugment, normalisation, random erasing). Evaluation resizes the shorter side with PIL's bicubic
filter and crops the centre; the official crop ratio is 1.0, not the usual 0.875. Mixup and CutMix
act on batches and belong to the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast

from PIL import Image
from timm.data import auto_augment as auto_augment_ops
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms as tv

from src.errors import UserError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_MAX_ASPECT_RATIO = 16  # far more than what the centre crop keeps


def train_transform(
    image_size: int,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: Interpolation = "bicubic",
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    color_jitter: float = 0.4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    random_erasing: float = 0.25,
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel",
    erasing_count: int = 1,
) -> Callable[[Image.Image], Tensor]:
    """Random crop, flip, colour policy, normalisation, random erasing.

    Args:
        image_size: Height and width of the result in pixels.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel.
        interpolation: Filter of all geometric operations.
        crop_scale: Smallest and largest area of the random crop, relative to the image.
        crop_ratio: Smallest and largest width / height of the random crop.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of colour jitter; timm applies it only when ``auto_augment`` is off.
        auto_augment: Policy in timm's notation, or None.
        random_erasing: Probability of erasing a rectangle.
        erasing_mode: Filling: zeros, one random colour, or a random colour per pixel.
        erasing_count: Number of rectangles.

    Returns:
        Callable from an RGB image to a float32 tensor of shape ``(3, image_size, image_size)``.

    Raises:
        UserError: If timm does not know the policy.
    """
    try:
        transform = create_transform(
            image_size,
            is_training=True,
            mean=mean,
            std=std,
            interpolation=interpolation,
            scale=crop_scale,
            ratio=crop_ratio,
            hflip=hflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment or None,
            re_prob=random_erasing,
            re_mode=erasing_mode,
            re_count=erasing_count,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"timm cannot build the training transform with auto_augment={auto_augment!r} "
            f"({error or type(error).__name__}); expected a policy such as "
            '"rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", or null.'
        ) from error
    _let_posterize_reach_zero(transform)
    return cast("Callable[[Image.Image], Tensor]", transform)


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


def eval_transform(
    image_size: int,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 1.0,
) -> Callable[[Image.Image], Tensor]:
    """Shorter side to ``image_size / crop_pct``, centre crop, normalisation; nothing random.

    Args:
        image_size: Height and width of the result in pixels.
        mean: Mean of each RGB channel, of values in [0, 1].
        std: Standard deviation of each RGB channel.
        interpolation: Filter of the resize, with antialiasing as PIL does it.
        crop_pct: Side of the centre crop relative to the resized shorter side, in (0, 1]; official:
            1.0.

    Returns:
        Callable from an RGB image to a float32 tensor of shape ``(3, image_size, image_size)``.
    """
    steps = [
        shorten,
        tv.Resize(
            math.floor(image_size / crop_pct), interpolation=tv.InterpolationMode(interpolation)
        ),
        tv.CenterCrop(image_size),
        tv.ToTensor(),
        tv.Normalize(mean, std),
    ]
    return cast("Callable[[Image.Image], Tensor]", tv.Compose(steps))
