"""Per-class metrics after each evaluation of a segmentor."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src import files
from src.callbacks.classification_writer import class_names
from src.callbacks.run_folder import run_folder
from src.metrics.segmentation import class_table


class ClassTable(Callback):
    """Write ``classes_val.csv`` or ``classes_test.csv`` of the latest evaluation to the run folder.

    ``validate`` and ``test`` also print the table. Classes that do not occur are shown as ``-``.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the validation images."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val", show=trainer.state.fn == "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the test images."""
        self._write(trainer, pl_module, "test", show=True)

    def _write(self, trainer: Trainer, pl_module: Any, split: str, *, show: bool) -> None:
        scores = getattr(pl_module, "class_scores", None)
        if not scores or not trainer.is_global_zero:
            return  # not a segmentor
        names = class_names(trainer) or [str(i) for i in range(len(next(iter(scores.values()))))]
        head, rows = ("class", *scores), class_table(names, scores)
        if show:
            width = max(map(len, names))
            for name, *values in (head, *rows):
                print(f"{name:<{width}} " + " ".join(f"{value:>7}" for value in values))
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = run_folder(trainer) / f"classes_{split}.csv"
        files.write_csv(path, [head, *rows])
