"""Write what ``predict`` finds: a table of all files and annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from src import files
from src.callbacks.output_names import OutputNames
from src.callbacks.run_folder import run_folder, tell
from src.callbacks.unreadable import gather, is_predicting, of_this_rank
from src.decoding import MAX_PIXELS, BrokenImageError, decode
from src.visualization import draw_classes


class Row(NamedTuple):
    """Best classes of one file, most probable first."""

    path: str
    names: list[str]
    probabilities: list[float]


class ClassPredictionWriter(Callback):
    """Write ``predictions.csv`` and ``images/*.png`` into the run folder after ``predict``.

    The table has one row per file: ``path``, then class and probability of the best five.

    Args:
        folder: Where to write; default is the run folder.
        max_pictures: Number of files to draw, in the order of the table; -1 draws all, 0 none.
    """

    def __init__(self, folder: str | None = None, max_pictures: int = 200) -> None:
        self.folder, self.max_pictures = folder, max_pictures
        self._rows: list[Row] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier predictions."""
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
            return  # another task: its own writer takes care
        names = class_names(trainer)
        indices, values = outputs["index"].tolist(), outputs["probability"].tolist()
        for path, index, probability in zip(outputs["path"], indices, values, strict=True):
            found = [names[i] if i < len(names) else str(i) for i in index]
            self._rows.append(Row(path, found, probability))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what an interrupted prediction has found until then, each rank by itself."""
        if is_predicting(trainer) and self._rows:
            rows, name = sorted(self._rows), of_this_rank(trainer, "predictions.csv")
            try:
                path = self._write(trainer, rows, name)
                tell(f"Predictions: {path} ({len(rows)} files until it was stopped)")
            except files.NotWrittenError as error:  # the exception is what the user must see
                rank_zero_warn(f"What was predicted until then cannot be written: {error}.")

    def _write(self, trainer: Trainer, rows: list[Row], name: str) -> Path:
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        write_table(rows, folder / name)
        return folder / name

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the rows of all devices together and write them."""
        rows = sorted(gather(self._rows))
        self._rows = []
        if not trainer.is_global_zero or not rows:
            return
        table = self._write(trainer, rows, "predictions.csv")
        folder = table.parent
        tell(f"Predictions: {table} ({len(rows)} files)")
        chosen = rows if self.max_pictures < 0 else rows[: self.max_pictures]
        if chosen:
            root = getattr(trainer.datamodule, "predict_dir", None)  # type: ignore[attr-defined]
            names = OutputNames([row.path for row in rows], root)
            count = draw_images(chosen, folder / "images", names, max_pixels(trainer))
            tell(f"Images:      {folder / 'images'} ({count} of {len(rows)} files)")


def class_names(trainer: Trainer) -> list[str]:
    """Readable class names of the data module in use, or an empty list."""
    return list(getattr(trainer.datamodule, "class_names", []))  # type: ignore[attr-defined]


def max_pixels(trainer: Trainer) -> int:
    """Largest image that the data module in use reads."""
    return int(getattr(trainer.datamodule, "max_pixels", MAX_PIXELS))  # type: ignore[attr-defined]


def write_table(rows: list[Row], path: Path) -> None:
    """Write one line per file; every file has the same number of classes."""
    columns = [f"{kind}_{i + 1}" for i in range(len(rows[0].names)) for kind in ("class", "prob")]
    table: list[list[str]] = [["path", *columns]]
    for row in rows:
        pairs = zip(row.names, row.probabilities, strict=True)
        cells = [cell for name, value in pairs for cell in (name, f"{value:.6f}")]
        table.append([row.path, *cells])
    files.write_csv(path, table)


def draw_images(
    rows: list[Row], folder: Path, names: OutputNames, max_pixels: int = MAX_PIXELS
) -> int:
    """Draw the rows on their images, turned upright; returns how many images were written.

    Unreadable files are reported.
    """
    count = 0
    for row in rows:
        try:
            image = decode(row.path, upright=True, max_pixels=max_pixels)
        except BrokenImageError as error:
            rank_zero_warn(f"No image is drawn: {error}")
            continue
        drawn = draw_classes(image, row.names, row.probabilities)
        files.write_image(folder / names(row.path), drawn)
        count += 1
    return count
