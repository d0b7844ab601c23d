"""Transforms of the official ADE20K recipe, with albumentations.

Source: the pipelines of the official InternImage configurations (mmsegmentation 0.27): random
resize, a crop that no class dominates, flip, photometric distortion, padding; in evaluation a
resize that keeps the aspect ratio and then rounds the sides up. As in the official code, all
resizes are bilinear ones of OpenCV without antialiasing. Results have 8 bits: ``batches.py``
normalises them on the device, and clears the padding.

albumentations is no longer maintained. Only the files of this folder import it; the datasets use
the protocols of ``protocols.py``. Importing it takes seconds, so the data modules do it late.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no query of PyPI at every start

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from src.errors import UserError
from src.types import IGNORE_LABEL

Array = NDArray[Any]

MAX_RESIZED = 2**28
"""Maximum number of pixels of a resized image, 768 MiB as 8-bit RGB."""

# The loader's workers use all cores already; OpenCV's threads would compete with them.
cv2.setNumThreads(0)


def fit_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """Size of an image that is resized to fit, with its aspect ratio kept.

    Args:
        size: Height and width in pixels.
        scale: Largest long side and largest short side in pixels, in any order.

    Returns:
        Height and width, at least 1, rounded half up.

    Raises:
        UserError: If the result has more than `MAX_RESIZED` pixels.
    """
    height, width = size
    factor = min(max(scale) / max(size), min(scale) / min(size))
    fitted = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    if math.prod(fitted) > MAX_RESIZED:
        raise UserError(
            f"An image of {width} x {height} pixels would be resized to {fitted[1]} x {fitted[0]}"
            f" to fit {max(scale)} x {min(scale)}; expected at most {MAX_RESIZED} pixels. Lower the"
            " scale of the recipe (eval_scale or image_scale of data, tta_ratios, train_scales)."
        )
    return fitted


def resize(image: Array, size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR) -> Array:
    """Resize ``(H, W)`` or ``(H, W, 3)`` to height and width ``size``."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=interpolation))


class RandomRatioResize(A.DualTransform):
    """Resize to fit ``scale * ratio`` with a random ratio; nearest neighbour for labels."""

    def __init__(self, scale: tuple[int, int], ratio_range: tuple[float, float]) -> None:
        super().__init__(p=1.0)
        self.scale = scale
        self.ratio_range = ratio_range

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the size of the result."""
        ratio = self.random_generator.uniform(*self.ratio_range)
        bounds = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        return {"size": fit_size(data["image"].shape[:2], bounds)}

    def apply(self, img: Array, size: tuple[int, int], **_: Any) -> Array:
        """Resize the image."""
        return resize(img, size)

    def apply_to_mask(self, mask: Array, size: tuple[int, int], **_: Any) -> Array:
        """Resize the labels."""
        return resize(mask, size, cv2.INTER_NEAREST)


class RandomCategoryCrop(A.DualTransform):
    """Random crop, drawn again while one class has too large a share of its labelled pixels.

    Smaller images are not padded here. After ten tries the next crop is used as it is.
    """

    tries = 10

    def __init__(self, size: tuple[int, int], max_share: float) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.max_share = max_share

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the window."""
        label = data["mask"]
        window = self._window(label)
        if self.max_share < 1:
            for _ in range(self.tries):
                if self._is_varied(label[window]):
                    break
                window = self._window(label)
        return {"window": window}

    def _window(self, label: Array) -> tuple[slice, slice]:
        rows, columns = (
            slice(start, start + side)
            for start, side in (
                (int(self.random_generator.integers(max(full - side, 0) + 1)), side)
                for full, side in zip(label.shape[:2], self.size, strict=True)
            )
        )
        return rows, columns

    def _is_varied(self, label: Array) -> bool:
        counts = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)
        counts[IGNORE_LABEL] = 0
        return bool((counts > 0).sum() > 1 and counts.max() < self.max_share * counts.sum())

    def apply(self, img: Array, window: tuple[slice, slice], **_: Any) -> Array:
        """Crop the image or the labels."""
        return img[window]

    def apply_to_mask(self, mask: Array, window: tuple[slice, slice], **_: Any) -> Array:
        """Crop the labels."""
        return mask[window]


class PhotometricDistortion(A.ImageOnlyTransform):
    """Brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes first or last, at random. Every step rounds down to 8 bits. The official ranges
    are brightness ±32, contrast and saturation 0.5 to 1.5, hue ±18 of 180.
    """

    def __init__(self) -> None:
        super().__init__(p=1.0)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the strength of every step, or None for a step that is left out."""
        rng = self.random_generator
        draw = {
            "brightness": rng.uniform(-32, 32),
            "contrast": rng.uniform(0.5, 1.5),
            "saturation": rng.uniform(0.5, 1.5),
            "hue": int(rng.integers(-18, 18)),
        }
        chosen = {name: value if rng.random() < 0.5 else None for name, value in draw.items()}
        return {**chosen, "contrast_first": bool(rng.integers(2))}

    def apply(
        self,
        img: Array,
        brightness: float | None,
        contrast: float | None,
        saturation: float | None,
        hue: int | None,
        contrast_first: bool,
        **_: Any,
    ) -> Array:
        """Distort an RGB image."""
        if brightness is not None:
            img = _lookup(img, offset=brightness)
        if contrast is not None and contrast_first:
            img = _lookup(img, factor=contrast)
        if saturation is not None or hue is not None:
            hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
            if saturation is not None:
                hsv[..., 1] = _lookup(hsv[..., 1], factor=saturation)
            if hue is not None:
                turned = (np.arange(256) + hue) % 180
                hsv[..., 0] = turned.astype(np.uint8)[hsv[..., 0]]
            img = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
        if contrast is not None and not contrast_first:
            img = _lookup(img, factor=contrast)
        return img


def _lookup(values: Array, factor: float = 1.0, offset: float = 0.0) -> Array:
    """``values * factor + offset``, clipped to 8 bits and rounded down."""
    table = np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(values), table))


class TrainTransform:
    """Random resize, crop, flip and distortion of an image and its labels.

    Args:
        crop_size: Height and width of the result in pixels.
        scale: Largest long and short side that ratio 1 scales to.
        ratio_range: Smallest and largest ratio.
        cat_max_ratio: Share of a crop's labelled pixels that every class should stay below; 1 is
            off.
        hflip: Probability of a horizontal flip.
        photometric: Whether to change brightness, contrast, saturation and hue.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        *,
        scale: tuple[int, int],
        ratio_range: tuple[float, float],
        cat_max_ratio: float,
        hflip: float,
        photometric: bool,
    ) -> None:
        steps = [
            RandomRatioResize(scale, ratio_range),
            RandomCategoryCrop(crop_size, cat_max_ratio),
            A.HorizontalFlip(p=hflip),
            *([PhotometricDistortion()] if photometric else []),
        ]
        self._compose = A.Compose(steps)
        self._crop_size = crop_size

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """See `PairTransform`."""
        # One generator for all steps; the same seed for each step would correlate them.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        done = self._compose(image=image, mask=label)
        height, width = done["mask"].shape
        padding = (0, self._crop_size[1] - width, 0, self._crop_size[0] - height)
        tensor = F.pad(_to_tensor(done["image"]), padding)
        target = F.pad(torch.from_numpy(done["mask"]), padding, value=IGNORE_LABEL)
        return tensor, target.to(torch.int64), (height, width)


class EvalTransform:
    """Resize to fit, round the sides up; optionally at several scales, with flips.

    Args:
        scale: Largest long and short side of an image at ratio 1.
        size_divisor: Sides are resized to multiples of this.
        ratios: Scales of the views relative to ``scale``.
        flip: Whether every view is followed by its flipped copy.
    """

    def __init__(
        self,
        *,
        scale: tuple[int, int],
        size_divisor: int,
        ratios: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        self.scales = [(int(scale[0] * ratio), int(scale[1] * ratio)) for ratio in ratios]
        self.size_divisor = size_divisor
        self.flip = flip

    @property
    def flipped(self) -> list[bool]:
        """Which of the views are flipped horizontally."""
        return [mirror for _ in self.scales for mirror in ([False, True] if self.flip else [False])]

    def __call__(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """See `ViewsTransform`."""
        views = []
        for scale in self.scales:
            # Two resizes and not one, because the official pipeline rounds in between.
            fitted = resize(image, fit_size(image.shape[:2], scale))
            divisor = self.size_divisor
            rounded = [math.ceil(side / divisor) * divisor for side in fitted.shape[:2]]
            view = resize(fitted, (rounded[0], rounded[1]))
            tensor = _to_tensor(view)
            views += [tensor, tensor.flip(-1)] if self.flip else [tensor]
        return views


def _to_tensor(image: Array) -> Tensor:
    """``(H, W, 3)`` uint8 to a contiguous ``(3, H, W)`` tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
