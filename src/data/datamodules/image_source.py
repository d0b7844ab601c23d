"""All images of a split once, in their order, as the network sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from src.data.datamodules.loaders import Loader, LoaderOptions, start_worker
from src.data.datasets.image_folder import LabelledImages


class ImageSource:
    """Images and the transforms that make the network's input.

    Args:
        dataset: The images.
        on_device: Transforms of a batch on the device, in their order.
        batch_size: Images per batch.
        num_workers: Loader workers.
        loading: Settings of the loader.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        on_device: Sequence[Callable[[Tensor], Tensor]],
        batch_size: int,
        num_workers: int,
        loading: LoaderOptions,
    ) -> None:
        self.dataset, self.on_device = dataset, tuple(on_device)
        self._loader: Callable[[], Loader] = lambda: Loader(
            dataset,
            batch_size=batch_size,
            **loading.arguments(num_workers),
            collate_fn=default_collate,
            worker_init_fn=start_worker,
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[Tensor]:
        """Batches of 8-bit images."""
        return (batch["image"] for batch in self._loader())

    def to_input(self, image: Tensor) -> Tensor:
        """The network's input for a batch, on the device of the batch."""
        for transform in self.on_device:
            image = transform(image)
        return image

    def identity(self) -> tuple[Any, ...]:
        """Everything that the input depends on: images, transforms, size and time of every file."""
        status = [os.stat(path) for path in self.dataset.paths]  # noqa: PTH116  many files
        return (
            self.dataset,
            self.on_device,
            [(entry.st_size, entry.st_mtime_ns) for entry in status],
        )
