"""Image-text pairs of one or more indexed sources of tars."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from src.data.datasets.readable import BLANK, MAX_BROKEN_IN_A_ROW, BrokenImages
from src.data.tars.reader import PairReader
from src.data.transforms.classification import Crop, TrainTransform
from src.decoding import MAX_PIXELS, BrokenImageError, Reduce, decode
from src.errors import UserError

Transform = Callable[[Image.Image], Tensor]
Tokenize = Callable[[str], Tensor]


class PairSample(TypedDict):
    """One pair.

    Attributes:
        image: uint8 ``(3, H, W)``.
        text: Token ids, int64 ``(context_length,)``.
        id: Number of the pair, counted over all sources.
        broken: Names of images that could not be decoded and that this one replaces.
        is_padding: Marks a sample that metrics leave out, see `src.data.samplers.padding`.
    """

    image: Tensor
    text: Tensor
    id: int
    broken: list[str]
    is_padding: NotRequired[bool]


class ImageTextPairs(Dataset[PairSample]):
    """Pairs by their number.

    Args:
        sources: Readers of the sources; their pairs are numbered one source after the other.
        transform: From an RGB image to uint8 ``(3, H, W)``.
        tokenize: From a text to its token ids.
        broken_images: ``"error"`` raises on an image that cannot be decoded; ``"skip"`` takes the
            next pair of its tar instead or, in evaluation, gives a padding sample.
        upright: Turn images as their EXIF block says.
        max_pixels: Larger images count as broken.
        train: Whether the pairs are for training.

    Attributes:
        reduce: How far JPEG images may be reduced in evaluation while they are decoded; None is not
            at all.
    """

    reduce: Reduce | None = None

    def __init__(
        self,
        sources: Sequence[PairReader],
        transform: Transform,
        tokenize: Tokenize,
        broken_images: BrokenImages = "error",
        *,
        upright: bool = False,
        max_pixels: int = MAX_PIXELS,
        train: bool = False,
    ) -> None:
        self.sources, self.transform, self.tokenize = list(sources), transform, tokenize
        self.broken_images: BrokenImages = broken_images
        self.upright, self.max_pixels, self.train = upright, max_pixels, train
        self._ends = np.cumsum([len(source.index) for source in self.sources])

    def __len__(self) -> int:
        """Number of pairs of all sources."""
        return int(self._ends[-1])

    def __getitem__(self, index: int | tuple[int, int]) -> PairSample:
        """Read a pair.

        Args:
            index: Number of the pair; in training with a number that seeds its augmentation, which
                then depends neither on earlier samples nor on the number of workers.

        Raises:
            UserError: If the image is broken, or in skip mode if a long run of images is.
        """
        if isinstance(index, tuple):
            index, seed = index
            with _seeded(seed):
                return self._read(index)
        return self._read(index)

    def _read(self, index: int) -> PairSample:
        position = index % len(self)
        source, tar, number = self.place(position)
        reader = self.sources[source]
        count, start = int(reader.index.sizes[tar]), position - number
        tries = min(count, MAX_BROKEN_IN_A_ROW if self.train else 1)
        broken: list[str] = []
        for candidate in ((number + step) % count for step in range(tries)):
            pair = reader.read(tar, candidate)
            try:
                image = self._transformed(pair.image)
            except BrokenImageError as error:
                broken.append(self._refused(reader.name(tar, candidate), error))
                continue
            sample = self._sample(image, pair.text, start + candidate, broken)
            return {**sample, "is_padding": True} if index >= len(self) else sample
        if self.train:
            raise UserError(
                f"{tries} images in a row cannot be read, beginning with {broken[0]}. Check the "
                "disk and the tar."
            )
        blank = self.transform(Image.fromarray(BLANK))
        return {**self._sample(blank, "", position, broken), "is_padding": True}

    def place(self, index: int) -> tuple[int, int, int]:
        """Source of a pair, its tar, and the number of the pair in the tar."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (int(self._ends[source - 1]) if source else 0)
        starts = self.sources[source].index.starts
        tar = int(np.searchsorted(starts, within, side="right")) - 1
        return source, tar, within - int(starts[tar])

    def _sample(self, image: Tensor, text: str, index: int, broken: list[str]) -> PairSample:
        return {"image": image, "text": self.tokenize(text), "id": index, "broken": broken}

    def _refused(self, name: str, error: BrokenImageError) -> str:
        if self.broken_images == "error":
            text = str(error).replace(_UNNAMED, name)
            raise UserError(
                f"{text} Leave out its tar, or skip such images with --data.broken_images skip."
            ) from error
        return name

    def _transformed(self, content: bytes) -> Tensor:
        transform = self.transform
        options: dict[str, Any] = {"upright": self.upright, "max_pixels": self.max_pixels}
        if not isinstance(transform, TrainTransform):
            return transform(decode(_UNNAMED, content=content, reduce=self.reduce, **options))
        crops: list[Crop] = []

        def reduction(width: int, height: int) -> int:
            crops.append(transform.draw(width, height))
            return crops[-1].reduction

        image = decode(_UNNAMED, content=content, reduce=reduction, **options)
        return transform(image, crops[-1])


_UNNAMED = "\0"  # stands for the name of a member, which is only read for a message


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that augmentation draws from; those of the main process are restored."""
    before = None
    if get_worker_info() is None:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  timm draws from the global generator
    torch.default_generator.manual_seed(seed >> 1)  # not those of GPUs
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            torch.set_rng_state(before[2])
