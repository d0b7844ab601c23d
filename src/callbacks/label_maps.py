"""Write what ``predict`` finds in segmentation: label maps, and images with their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from src import files
from src.callbacks.output_names import OutputNames, output_names
from src.callbacks.predictions import class_names, max_pixels
from src.callbacks.run_folder import run_folder
from src.decoding import BrokenImageError, decode
from src.visualization import draw_label_map


class LabelMapWriter(Callback):
    """Write ``label_maps/*.png`` and ``overlays/*.png`` into the run folder during ``predict``.

    Values of a label map are class indices from 0, and its palette shows them in colour. Datasets
    that count classes from 1 (ADE20K) need 1 added before the files serve as annotations.

    Args:
        folder: Where to write; default is the run folder.
        max_overlays: Number of images per process that are drawn with their classes; -1 draws
            all, 0 none.
        opacity: Share of the colours in the drawings, from 0 to 1.
    """

    def __init__(
        self, folder: str | None = None, max_overlays: int = 200, opacity: float = 0.55
    ) -> None:
        self.folder, self.max_overlays, self.opacity = folder, max_overlays, opacity
        self._count = 0
        self._names = OutputNames((), None)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the beginning, and choose the names of the files."""
        self._count = 0
        self._names = output_names(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the files of a batch."""
        if not isinstance(outputs, dict) or not {"path", "label_map"} <= outputs.keys():
            return  # another task: its own writer takes care
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names, palette = class_names(trainer), list(data.palette)
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        for source, label_map in zip(outputs["path"], outputs["label_map"], strict=True):
            name = self._names(source)
            values = label_map.numpy()
            files.write_image(folder / "label_maps" / name, _palette_image(values, palette))
            if self.max_overlays < 0 or self._count < self.max_overlays:
                try:
                    # Turned as the network saw it.
                    upright = getattr(data, "upright", False)
                    image = decode(source, upright=upright, max_pixels=max_pixels(trainer))
                except BrokenImageError as error:  # the file has gone since the network saw it
                    rank_zero_warn(f"No overlay is drawn: {error}")
                else:
                    drawn = draw_label_map(image, values, names, palette, self.opacity)
                    files.write_image(folder / "overlays" / name, drawn)
            self._count += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell where the files are."""
        if self._count:
            folder = Path(self.folder) if self.folder else run_folder(trainer)
            rank_zero_info(f"Label maps:  {folder / 'label_maps'}")
            if self.max_overlays:
                rank_zero_info(f"Overlays:    {folder / 'overlays'}")


def _palette_image(
    label_map: NDArray[np.uint8], palette: list[tuple[int, int, int]]
) -> Image.Image:
    image = Image.fromarray(label_map)
    image.putpalette([value for colour in palette for value in colour])
    return image
