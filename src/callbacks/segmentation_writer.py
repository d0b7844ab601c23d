"""Write segmentation predictions: label maps and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
from src.tasks import SegmentationTask
from src.types import Colour
from src.visualization import draw_label_map


class LabelMapWriter(Callback):
    """Write ``label_maps/*.png`` and ``overlays/*.png`` into the run folder during ``predict``.

    Label maps contain class indices from 0 and a palette for viewing. If the annotations have
    other numbers (ADE20K counts from 1), a printed sentence says how to get them.

    Args:
        folder: Output folder; default is the run folder.
        max_overlays: Maximum number of overlays per rank; -1 for all, 0 for none.
        opacity: Opacity of the class colours in overlays, from 0 to 1.
        values: What the pixels of label maps hold: ``classes``, the class indices from 0, or
            ``own``, the numbers of your own label maps (with 16 bits above 255), or their colours
            (RGB) if ``prepare from-masks`` has read a table of colours.

    Raises:
        UserError: If the opacity is out of range; at the start of ``predict``, if the numbers of
            your own label maps are not known.
    """

    def __init__(
        self,
        folder: str | None = None,
        max_overlays: int = 200,
        opacity: float = 0.55,
        values: Literal["classes", "own"] = "classes",
    ) -> None:
        if not 0 <= opacity <= 1:
            raise UserError(f"label_maps.opacity: expected a number from 0 to 1, got {opacity}.")
        self.folder, self.max_overlays, self.opacity = folder, max_overlays, opacity
        self.values = values
        self._count = self._drawn = 0
        self._names = OutputNames((), None)
        self._classes = ""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts, choose the output names, and check that the values are known."""
        self._count = self._drawn = 0
        self._names = output_names(trainer)
        if isinstance(pl_module, SegmentationTask):
            self._own_values(trainer.datamodule)  # type: ignore[attr-defined]

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
        own = self._own_values(data)
        self._classes = _describe(names, data, own)
        folder = run_folder(trainer, self.folder)
        for source, label_map in zip(outputs["path"], outputs["label_map"], strict=True):
            name = self._names(source)
            values = label_map.numpy()
            stored = (
                _palette_image(values, palette) if own is None else own_image(values, own, palette)
            )
            files.write_image(folder / "label_maps" / name, stored)
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

    def _own_values(self, data: Any) -> Sequence[int] | Sequence[Colour] | None:
        """Value of each class in the label maps to write; ``None`` for class indices.

        Raises:
            UserError: If it is not known.
        """
        if self.values == "classes":
            return None
        own: Sequence[int] | Sequence[Colour] | None = getattr(data, "own_values", None)
        if own is None:
            raise UserError(
                "--label_maps.values own: the numbers of your label maps are not known, because the"
                " recipe does not have one for each class; set data.own_values, a list in the order"
                " of the class names, or leave label_maps.values out."
            )
        return own

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


def _describe(names: list[str], data: Any, own: Sequence[int] | Sequence[Colour] | None) -> str:
    """What the values of the label maps are."""
    if own is not None:
        first, last = (_text(value) for value in (own[0], own[-1]))
        text = f"; your values, {first} ({names[0]}) to {last} ({names[-1]})"
        # Recipes of `prepare from-masks` before it wrote own_values have class indices, too.
        is_index = list(own) == list(range(len(own)))
        return text + "; if yours are others, set data.own_values, one per class" * is_index
    text = f"; values 0 ({names[0]}) to {len(names) - 1} ({names[-1]})"
    if (advice := getattr(data, "to_own_numbers", lambda: None)()) is not None:
        text += f"; {advice}, or add --label_maps.values own"
    return text


def _text(value: int | Colour) -> str:
    return str(value) if isinstance(value, int) else "#" + "".join(f"{v:02x}" for v in value)


def own_image(
    label_map: NDArray[np.uint8], own: Sequence[int] | Sequence[Colour], palette: list[Colour]
) -> Image.Image:
    """A label map with other values than class indices.

    Args:
        label_map: Class indices, ``(H, W)``.
        own: Number or colour of each class.
        palette: Colour of each class for viewing.

    Returns:
        An image of mode ``RGB`` for colours, ``P`` for numbers up to 255, else ``I;16``.
    """
    values = np.array(own)
    if values.ndim == 2 or values.max() > 255:
        return Image.fromarray(
            values.astype(np.uint8 if values.ndim == 2 else np.uint16)[label_map]
        )
    colours: list[Colour] = [(0, 0, 0)] * 256
    for number, colour in zip(values.tolist(), palette, strict=True):
        colours[number] = colour
    return _palette_image(values.astype(np.uint8)[label_map], colours)


def _palette_image(label_map: NDArray[np.uint8], palette: list[Colour]) -> Image.Image:
    image = Image.fromarray(label_map)
    image.putpalette([value for colour in palette for value in colour])
    return image
