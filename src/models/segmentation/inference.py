"""Inference at the size of an image: whole or by sliding window, on one or several views.

Source: mmsegmentation 0.27 as the official InternImage models use it. The results depend on the
order of operations: scores are resized to the network's input, cropped to the part without padding,
resized to the image's own size, and only then turned into probabilities; views are averaged as
probabilities. The scores of Mask2Former are sums of probabilities; as in the official code, the
softmax is applied to them nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers.precision import full_precision
from src.models.segmentation.head import resize

MAX_VALUES = 2**26
"""Probabilities computed at once: 256 MiB in float32, and a few times that in temporary tensors."""

_STRIP_VALUES = 2**22  # 16 MiB: strips that fit the cache of a CPU are faster than larger ones


@dataclass(frozen=True)
class SlidingWindow:
    """Overlapping windows that cover an image.

    Attributes:
        crop_size: Height and width of a window in pixels of the network's input.
        stride: Vertical and horizontal step, at most ``crop_size``, so that no pixel is left out.

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
        """Top-left corners of the windows in an image of ``size``, the last ones moved inside."""
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
        logits = full_precision(network(image[patch])["out"])
        if total is None:
            total = logits.new_zeros((*logits.shape[:2], height, width))
        total[patch] += logits
        count[patch] += 1
    if total is None:  # an image with a side of 0 pixels
        raise UserError(f"An image of {height}x{width} pixels cannot be segmented.")
    return total / count


def number_of_forwards(
    shapes: Iterable[tuple[int, ...]], window: SlidingWindow | None = None
) -> int:
    """Forward passes for views of these shapes ``(..., H, W)``, with one batch per shape."""
    windows = (window.starts((s[-2], s[-1])) if window else [(0, 0)] for s in shapes)
    return sum(map(len, windows))


def image_probabilities(
    network: nn.Module,
    views: Sequence[Tensor],
    size: tuple[int, int],
    *,
    flipped: Sequence[bool] | None = None,
    content_size: tuple[int, int] | None = None,
    window: SlidingWindow | None = None,
) -> Tensor:
    """Class probabilities of whole images; `probability_strips` needs less memory.

    Args:
        network: See `probability_strips`, as the other arguments.
        views: The same images prepared in one or more ways, each ``(N, 3, h_v, w_v)``.
        size: Height and width of the result, the images' own size.
        flipped: Which views are mirrored left to right.
        content_size: Height and width of the part of each view that is not padding.
        window: Sliding inference.

    Returns:
        Probabilities of shape ``(N, num_classes, *size)``, float32 (float64 for float64 views).
    """
    strips = probability_strips(
        network, views, size, flipped=flipped, content_size=content_size, window=window
    )
    parts = [probabilities for _, probabilities in strips]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def probability_strips(
    network: nn.Module,
    views: Sequence[Tensor],
    size: tuple[int, int],
    *,
    flipped: Sequence[bool] | None = None,
    content_size: tuple[int, int] | None = None,
    window: SlidingWindow | None = None,
    max_values: int = MAX_VALUES,
) -> Iterator[tuple[slice, Tensor]]:
    """Class probabilities of images, averaged over their views, in strips from top to bottom.

    Small images are one strip. Large ones are several, so that memory depends on the size of the
    views and hardly on that of the images: the probabilities of 150 classes in an image of 12
    megapixels take 7 GB.

    Args:
        network: `Segmentor` in evaluation mode.
        views: The same images prepared in one or more ways, each ``(N, 3, h_v, w_v)``.
        size: Height and width of the result, the images' own size.
        flipped: Which views are mirrored left to right; default is none.
        content_size: Height and width of the top-left part of each view that is not padding;
            default is all of it.
        window: Sliding inference; default is a forward pass of each whole view.
        max_values: Number of probabilities above which there are several strips.

    Yields:
        The rows of a strip, and their probabilities of shape ``(N, num_classes, rows, size[1])``,
        float32 (float64 for float64 views).

    Raises:
        UserError: If there are no views.
    """
    if not views:
        raise UserError("An image needs at least one view to be segmented.")
    mirrored = list(flipped or [False] * len(views))
    scored = (_view_logits(network, view, content_size, window) for view in views)
    first = next(scored)
    scores: Iterable[Tensor] = chain([first], scored)
    height, width = size
    row_values = first.shape[0] * first.shape[1] * width
    if row_values * height <= max_values or not _scores_are_small(views, size):
        del first  # each view's scores are freed as soon as they have been added
        yield slice(0, height), _mean_probabilities((resize(x, size) for x in scores), mirrored)
        return
    kept = list(scores)
    rows = max(1, min(max_values, _STRIP_VALUES) // row_values)
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        resized = (_resized_rows(x, size, strip) for x in kept)
        yield strip, _mean_probabilities(resized, mirrored)


def _scores_are_small(views: Sequence[Tensor], size: tuple[int, int]) -> bool:
    """Whether the scores of all views take less memory than summing at the size of the image.

    The latter needs about three tensors of that size: the sum, the resized scores and their
    probabilities.
    """
    return sum(view.shape[-2] * view.shape[-1] for view in views) <= 2 * size[0] * size[1]


def _view_logits(
    network: nn.Module,
    view: Tensor,
    content_size: tuple[int, int] | None,
    window: SlidingWindow | None,
) -> Tensor:
    logits: Tensor = network(view)["out"] if window is None else slide_logits(network, view, window)
    logits = full_precision(logits)
    if content_size is not None:
        logits = logits[..., : content_size[0], : content_size[1]]
    return logits


def _mean_probabilities(logits_of_views: Iterable[Tensor], mirrored: Sequence[bool]) -> Tensor:
    total: Tensor | None = None
    for logits, mirror in zip(logits_of_views, mirrored, strict=True):
        probabilities = logits.softmax(dim=1)
        probabilities = probabilities.flip(-1) if mirror else probabilities
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return total if len(mirrored) == 1 else total / len(mirrored)


def _resized_rows(x: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """Some rows of ``resize(x, size)``: ``(N, C, H, W)`` to ``(N, C, rows, size[1])``."""
    height = x.shape[-2]
    if height == size[0]:
        return resize(x[:, :, rows], (rows.stop - rows.start, size[1]))
    position = _source_rows(height, size[0], rows, x)
    upper = position.floor()
    share = (position - upper)[:, None]
    index = upper.long()
    # Interpolate rows first, at the width of the view, which is cheap, and then columns.
    mixed = x[:, :, index] * (1 - share)
    mixed += x[:, :, (index + 1).clamp(max=height - 1)] * share
    return resize(mixed, (rows.stop - rows.start, size[1]))


def _source_rows(height: int, target: int, rows: slice, x: Tensor) -> Tensor:
    """Positions of rows of a bilinear resize in its input, computed as PyTorch does."""
    ratio = torch.tensor(height, dtype=x.dtype, device=x.device) / target
    index = torch.arange(rows.start, rows.stop, dtype=x.dtype, device=x.device)
    return ((index + 0.5) * ratio - 0.5).clamp(min=0)
