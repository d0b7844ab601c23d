"""Results of an evaluation: means, and the metrics of every class.

Logged metrics and files contain fractions; the printed tables show percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src import files
from src.callbacks.classification_writer import class_names
from src.callbacks.run_folder import run_folder, tell
from src.errors import printable

_SPLITS = {"val": "validation", "test": "test"}
_MAX_ROWS = 200
_MEANINGS = {
    "top1": "images whose most probable class is right",
    "mIoU": "IoU, mean of the classes",
    "mAcc": "pixels that are right, mean of the classes",
    "aAcc": "pixels that are right, of all",
    "AR_100": "recall with at most 100 detections per image",
}


class ClassTable(Callback):
    """Print the results of ``validate`` and ``test``, and write those of every class.

    Writes the following files of the latest evaluation to the run folder, with ``test`` instead of
    ``val`` for the test split:

    - ``classes_val.csv``: number of images (classification), annotated objects (detection) or
      labelled pixels (segmentation) of every class, and its metrics, as fractions; empty cells for
      classes that do not occur.
    - ``confusion_val.csv`` (classification): number of images by class (row) and predicted class
      (column).
    """

    def __init__(self) -> None:
        self._is_printing = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's table of results, unless it is turned off."""
        loops = {"validate": trainer.validate_loop, "test": trainer.test_loop}
        if (loop := loops.get(stage)) is not None:
            self._is_printing, loop.verbose = loop.verbose, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the results of the validation images."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the results of the test images."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, task: Any, split: str) -> None:
        if not trainer.is_global_zero:
            return
        scores = _counts_first(getattr(task, "class_scores", {}))
        counts: Tensor | None = getattr(task, "confusion_counts", None)
        length = len(next(iter(scores.values()))) if scores else 0
        names = class_names(trainer) or [str(index) for index in range(length)]
        if trainer.state.fn != "fit" and self._is_printing:
            shown = "val" if split == "test" and not _has_test_images(trainer) else split
            lines = summary(trainer.callback_metrics, task, split, shown)
            if any(line.endswith("  -") for line in lines):
                lines.append("(-: no such objects are annotated)")
            tell("\n".join([*lines, *legend(trainer.callback_metrics, split)]))
            if 0 < length <= _MAX_ROWS:
                tell("\n".join(class_rows(names, scores)))
        if not scores or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder(trainer)
        columns = [_shown(values, _fraction) for values in scores.values()]
        rows = zip(names, *columns, strict=True)
        files.write_csv(folder / f"classes_{split}.csv", [("class", *scores), *rows])
        if counts is not None:
            matrix = [(name, *row) for name, row in zip(names, counts.tolist(), strict=True)]
            files.write_csv(folder / f"confusion_{split}.csv", [("class", *names), *matrix])


def _has_test_images(trainer: Trainer) -> bool:
    """Whether the data have a test split, or ``test`` reads the validation images."""
    return bool(getattr(getattr(trainer, "datamodule", None), "has_test_images", True))


def summary(
    metrics: Mapping[str, Any], task: Any, split: str, images: str | None = None
) -> list[str]:
    """Lines with the mean metrics of a split: scores in percent, losses as they are logged.

    Args:
        metrics: Logged metrics by name.
        task: The task that logged them.
        split: ``val`` or ``test``.
        images: The split that the images are from, if it is another one.
    """
    scores = {name.partition("/")[2] for name in task.score_names()}
    found = {
        name.partition("/")[2]: float(value)
        for name, value in metrics.items()
        if name.startswith(f"{split}/")
    }
    plain = sorted(
        (name for name in found if not name.endswith("_raw")), key=lambda name: name not in scores
    )
    columns = ["", "_raw"] if any(name.endswith("_raw") for name in found) else [""]
    width = max(map(len, plain), default=0)
    head = f"{'':<{width}}  {'EMA':>7}  {'raw':>7}" if len(columns) > 1 else ""
    title = f"\nResults of the {_SPLITS[images or split]} images"
    if images not in (None, split):
        title += f", as there are no {_SPLITS[split]} images"
    unit = "percent" if scores >= set(plain) else "percent, but not the loss"
    lines = [f"{title} ({unit})", *([head] if head else [])]
    for name in plain:
        values = (found.get(name + suffix, float("nan")) for suffix in columns)
        shown = (_percent(value) if name in scores else f"{value:.4f}" for value in values)
        lines.append(f"{name:<{width}}" + "".join(f"  {text:>7}" for text in shown))
    return lines


def legend(metrics: Iterable[str], split: str) -> list[str]:
    """A line that explains abbreviations, if there are any.

    Args:
        metrics: Names of logged metrics.
        split: ``val`` or ``test``.
    """
    found = {name.removeprefix(f"{split}/").removeprefix("bbox_") for name in metrics}
    known = [f"{name}: {meaning}" for name, meaning in _MEANINGS.items() if name in found]
    return [f"({'; '.join(known)})"] if known else []


def class_rows(names: Sequence[str], scores: Mapping[str, Tensor]) -> list[str]:
    """Lines with the metrics of every class in percent, ``-`` for a class that does not occur.

    Args:
        names: Class names in label order.
        scores: By the name of their column: scores of every class, as fractions, and integers,
            which are counts.
    """
    columns = {name: _shown(values, _percent) for name, values in scores.items()}
    widths = [max(9, *map(len, texts)) for texts in columns.values()]
    width = max(len("class"), *(len(printable(name)) for name in names))
    lines = zip(
        ["class", *map(printable, names)], *([n, *t] for n, t in columns.items()), strict=True
    )
    head, *rows = (
        f"{name:<{width}}"
        + "".join(f"  {text:>{size}}" for text, size in zip(texts, widths, strict=True))
        for name, *texts in lines
    )
    return [f"\n{head}", *rows]


def _counts_first(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(scores.items(), key=lambda item: item[1].is_floating_point()))


def _shown(values: Tensor, form: Callable[[float], str]) -> list[str]:
    """Scores in a form, and counts as they are."""
    return [form(value) if values.is_floating_point() else str(value) for value in values.tolist()]


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"  # NaN differs from itself


def _fraction(value: float) -> str:
    return "" if value != value else f"{value:.6f}"
