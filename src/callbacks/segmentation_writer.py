"""Write segmentation predictions: label maps and overlays."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from src import files
from src.callbacks.classification_writer import class_names, max_pixels
from src.callbacks.output_names import OutputNames, output_names
from src.callbacks.run_folder import run_folder, tell
from src.callbacks.unreadable import gather
from src.decoding import BrokenImageError, decode
from src.errors import UserError, counted
from src.visualization import draw_label_map


class LabelMapWriter(Callback):
    """Write ``label_maps/*.png`` and ``overlays/*.png`` into the run folder during ``predict``.

    Label maps contain class indices from 0 and a palette for viewing. If the annotations have
    other numbers (ADE20K counts from 1), a printed sentence says how to get them.

    Args:
        folder: Output folder; default is the run folder.
        max_overlays: Maximum number of overlays per rank; -1 for all, 0 for none.
        opacity: Opacity of the class colours in overlays, from 0 to 1.

    Raises:
        UserError: If the opacity is out of range.
    """

    def __init__(
        self, folder: str | None = None, max_overlays: int = 200, opacity: float = 0.55
    ) -> None:
        if not 0 <= opacity <= 1:
            raise UserError(f"label_maps.opacity: expected a number from 0 to 1, got {opacity}.")
        self.folder, self.max_overlays, self.opacity = folder, max_overlays, opacity
        self._count = self._drawn = 0
        self._names = OutputNames((), None)
        self._classes = ""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts and choose the output names."""
        self._count = self._drawn = 0
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
            return  # not a segmentor
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names, palette = class_names(trainer), list(data.palette)
        self._classes = f"; values 0 ({names[0]}) to {len(names) - 1} ({names[-1]})"
        if (own := getattr(data, "to_own_numbers", lambda: None)()) is not None:
            self._classes += f"; {own}"
        folder = run_folder(trainer, self.folder)
        for source, label_map in zip(outputs["path"], outputs["label_map"], strict=True):
            name = self._names(source)
            values = label_map.numpy()
            files.write_image(folder / "label_maps" / name, _palette_image(values, palette))
            if self.max_overlays < 0 or self._count < self.max_overlays:
                try:
                    # The same orientation as in the input of the network.
                    image = decode(source, upright=data.upright, max_pixels=max_pixels(trainer))
                except BrokenImageError as error:  # the file was changed after it was loaded
                    rank_zero_warn(f"Cannot draw an overlay: {error}")
                else:
                    drawn = draw_label_map(image, values, names, palette, self.opacity)
                    files.write_image(folder / "overlays" / name, drawn)
                    self._drawn += 1
            self._count += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the output folders, with the number of files of all ranks."""
        counts = gather([(self._count, self._drawn)])
        written, drawn = (sum(numbers) for numbers in zip(*counts, strict=True))
        if written:
            folder = run_folder(trainer, self.folder)
            maps = folder / "label_maps"
            tell(f"Label maps:  {maps} ({counted(written, 'file')}{self._classes})")
            if self.max_overlays:
                tell(f"Overlays:    {folder / 'overlays'} ({drawn} of {counted(written, 'file')})")


def _palette_image(
    label_map: NDArray[np.uint8], palette: list[tuple[int, int, int]]
) -> Image.Image:
    image = Image.fromarray(label_map)
    image.putpalette([value for colour in palette for value in colour])
    return image
