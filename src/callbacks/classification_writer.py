"""Write classification predictions: a table and annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from src import files
from src.callbacks.output_names import OutputNames
from src.callbacks.run_folder import run_folder, tell
from src.callbacks.unreadable import gather, is_predicting, rank_file_name
from src.decoding import MAX_PIXELS, BrokenImageError, decode
from src.errors import counted
from src.visualization import draw_classes


class Row(NamedTuple):
    """Top classes of one file, most probable first."""

    path: str
    names: list[str]
    probabilities: list[float]


class ClassPredictionWriter(Callback):
    """Write ``predictions.csv`` and ``images/*.png`` into the run folder after ``predict``.

    The table has one row per file: ``path``, then classes and probabilities of the top five.

    Args:
        folder: Output folder; default is the run folder.
        max_images: Maximum number of annotated images; -1 for all, 0 for none.
    """

    def __init__(self, folder: str | None = None, max_images: int = 200) -> None:
        self.folder, self.max_images = folder, max_images
        self._rows: list[Row] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear earlier predictions."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the rows of a batch."""
        if not isinstance(outputs, dict) or not {"path", "index", "probability"} <= outputs.keys():
            return  # not a classifier
        names = class_names(trainer)
        indices, values = outputs["index"].tolist(), outputs["probability"].tolist()
        for path, index, probability in zip(outputs["path"], indices, values, strict=True):
            found = [names[i] if i < len(names) else str(i) for i in index]
            self._rows.append(Row(path, found, probability))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the results of an interrupted prediction, separately on each rank."""
        if is_predicting(trainer) and self._rows:
            rows, name = sorted(self._rows), rank_file_name(trainer, "predictions.csv")
            try:
                path = self._write(trainer, rows, name)
                tell(f"Predictions: {path} ({counted(len(rows), 'file')}, interrupted)")
            except files.NotWrittenError as error:  # the original exception is raised
                rank_zero_warn(f"Cannot write the predictions so far: {error}.")

    def _write(self, trainer: Trainer, rows: list[Row], name: str) -> Path:
        folder = run_folder(trainer, self.folder)
        write_table(rows, folder / name)
        return folder / name

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all ranks and write them."""
        rows = sorted(gather(self._rows))
        self._rows = []
        if not trainer.is_global_zero or not rows:
            return
        table = self._write(trainer, rows, "predictions.csv")
        folder = table.parent
        tell(f"Predictions: {table} ({counted(len(rows), 'file')})")
        chosen = rows if self.max_images < 0 else rows[: self.max_images]
        if chosen:
            root = getattr(trainer.datamodule, "predict_dir", None)  # type: ignore[attr-defined]
            names = OutputNames([row.path for row in rows], root)
            upright = bool(trainer.datamodule.upright)  # type: ignore[attr-defined]
            limit = max_pixels(trainer)
            count = draw_images(chosen, folder / "images", names, limit, upright=upright)
            tell(f"Images:      {folder / 'images'} ({count} of {counted(len(rows), 'file')})")


def class_names(trainer: Trainer) -> list[str]:
    """Class names of the data module, or an empty list."""
    return list(getattr(trainer.datamodule, "class_names", []))  # type: ignore[attr-defined]


def max_pixels(trainer: Trainer) -> int:
    """Maximum number of pixels per image of the data module."""
    return int(getattr(trainer.datamodule, "max_pixels", MAX_PIXELS))  # type: ignore[attr-defined]


def write_table(rows: list[Row], path: Path) -> None:
    """Write a table with one row per file."""
    columns = [f"{kind}_{i + 1}" for i in range(len(rows[0].names)) for kind in ("class", "prob")]
    table: list[list[str]] = [["path", *columns]]
    for row in rows:
        pairs = zip(row.names, row.probabilities, strict=True)
        cells = [cell for name, value in pairs for cell in (name, f"{value:.6f}")]
        table.append([row.path, *cells])
    files.write_csv(path, table)


def draw_images(
    rows: list[Row],
    folder: Path,
    names: OutputNames,
    max_pixels: int = MAX_PIXELS,
    *,
    upright: bool,
) -> int:
    """Write annotated images and return their number; unreadable files are reported.

    Args:
        rows: Predictions of the files.
        folder: Output folder.
        names: Names of the output files.
        max_pixels: Largest number of pixels of an image.
        upright: Apply the EXIF orientation, as in the input of the network.
    """
    count = 0
    for row in rows:
        try:
            image = decode(row.path, upright=upright, max_pixels=max_pixels)
        except BrokenImageError as error:
            rank_zero_warn(f"Cannot draw an image: {error}")
            continue
        drawn = draw_classes(image, row.names, row.probabilities)
        files.write_image(folder / names(row.path), drawn)
        count += 1
    return count
