"""Write the results of a detector: COCO results and annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from src import files
from src.callbacks.classification_writer import class_names, max_pixels
from src.callbacks.output_names import OutputNames, output_names
from src.callbacks.run_folder import is_dry_run, run_folder, tell
from src.callbacks.unreadable import gather, is_predicting, rank_file_name
from src.decoding import MAX_PIXELS, BrokenImageError, decode, turn_upright
from src.errors import UserError, counted, told_apart
from src.metrics.coco_results import Result, as_annotations, decode_masks, with_category_ids
from src.visualization import draw_instances


class DetectionWriter(Callback):
    """Write the results of a detector into the run folder.

    ``predict``: ``detections.json`` (a COCO file whose annotations also have a ``score``) and
    ``overlays/*.png``. ``validate`` and ``test``: ``results_val.json`` or ``results_test.json``
    (COCO results with the ids of the annotation file).

    Args:
        folder: Output folder; default is the run folder.
        max_overlays: Maximum number of annotated images per rank; -1 for all, 0 for none.
        score: Minimum score of drawn detections; the json files contain all of them.
    """

    def __init__(
        self, folder: str | None = None, max_overlays: int = 200, score: float = 0.3
    ) -> None:
        if not 0 <= score <= 1:
            raise UserError(f"detections.score: expected a probability from 0 to 1, got {score}.")
        self.folder, self.max_overlays, self.score = folder, max_overlays, score
        self._found: list[tuple[dict[str, Any], list[Result]]] = []
        self._names = OutputNames((), None)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear earlier predictions and choose the output names."""
        self._found = []
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
        """Draw and collect the results of a batch."""
        if not isinstance(outputs, dict) or "results" not in outputs:
            return  # not a detector
        names = class_names(trainer)
        for path, number, size, results in zip(
            outputs["path"], outputs["image_id"], outputs["size"], outputs["results"], strict=True
        ):
            if self.max_overlays < 0 or len(self._found) < self.max_overlays:
                self._draw(trainer, path, results, names)
            image = {"id": number, "file_name": path, "height": size[0], "width": size[1]}
            self._found.append((image, results))

    def _draw(self, trainer: Trainer, path: str, results: list[Result], names: list[str]) -> None:
        target = run_folder(trainer, self.folder) / "overlays" / self._names(path)
        try:
            drawn = draw_results(path, results, names, self.score, max_pixels(trainer))
        except BrokenImageError as error:  # the file was changed after it was loaded
            rank_zero_warn(f"Cannot draw an overlay: {error}")
            return
        files.write_image(target, drawn)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the results of an interrupted prediction, separately on each rank."""
        if is_predicting(trainer) and self._found:
            name = rank_file_name(trainer, "detections.json")
            try:
                path = self._write_found(trainer, self._found, name)
                tell(f"Detections:  {path} ({counted(len(self._found), 'image')}, interrupted)")
            except files.NotWrittenError as error:  # the original exception is raised
                rank_zero_warn(f"Cannot write the detections so far: {error}.")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the results of all ranks and write them."""
        found = gather(self._found)
        self._found = []
        if not found or not trainer.is_global_zero:
            return
        path = self._write_found(trainer, found, "detections.json")
        tell(f"Detections:  {path} ({counted(len(found), 'image')})")
        if self.max_overlays:
            tell(f"Overlays:    {path.parent / 'overlays'}")
            tell(f"             {count_shown([results for _, results in found], self.score)}")

    def _write_found(
        self, trainer: Trainer, found: list[tuple[dict[str, Any], list[Result]]], name: str
    ) -> Path:
        unique = {image["id"]: (image, results) for image, results in found}
        images, results = zip(*(unique[number] for number in sorted(unique)), strict=True)
        names, ids = class_names(trainer), category_ids(trainer)
        content = {
            "images": list(images),
            "annotations": as_annotations([r for part in results for r in part], ids),
            "categories": [{"id": i, "name": n} for i, n in zip(ids, names, strict=True)],
        }
        path = run_folder(trainer, self.folder) / name
        files.write_json(path, content, allow_nan=False)
        return path

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of the validation images."""
        if not trainer.sanity_checking:
            self._write_scores(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of the test images."""
        self._write_scores(trainer, pl_module, "test")

    def _write_scores(self, trainer: Trainer, pl_module: Any, split: str) -> None:
        results = getattr(pl_module, "scored_results", None)
        if results is None or not trainer.is_global_zero or is_dry_run(trainer):
            return  # not a detector, or a validation of `fit`
        path = run_folder(trainer, self.folder) / f"results_{split}.json"
        content = with_category_ids(results, category_ids(trainer))
        files.write_json(path, content, allow_nan=False)
        tell(f"COCO results: {path}")


def draw_results(
    path: str,
    results: list[Result],
    names: list[str],
    score: float,
    max_pixels: int = MAX_PIXELS,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Image with its EXIF orientation applied and the COCO results above a score drawn.

    Args:
        path: The image.
        results: Its COCO results.
        names: Names of the classes.
        score: Minimum score of drawn results.
        max_pixels: Maximum number of pixels.
        size: Height and width that the results belong to. If they are those of the stored and
            not of the turned image, the orientation is not applied, as in the validation images.

    Raises:
        UserError: If the file cannot be decoded.
    """
    shown = [result for result in results if result["score"] >= score]
    stored = decode(path, max_pixels=max_pixels)
    upright = turn_upright(stored, path)
    is_as_stored = size is not None and (upright.height, upright.width) != size
    return draw_instances(
        stored if is_as_stored else upright,
        boxes=[result["bbox"] for result in shown],
        masks=decode_masks(shown),
        names=[names[result["category_id"]] for result in shown],
        scores=[result["score"] for result in shown],
        classes=[result["category_id"] for result in shown],
    )


def count_shown(results: list[list[Result]], score: float) -> str:
    """How many images have detections above a score; says what the highest score is.

    Args:
        results: COCO results of each image.
        score: Minimum score of drawn detections.
    """
    highest = [max((result["score"] for result in found), default=0.0) for found in results]
    shown = sum(value >= score for value in highest)
    top = max(highest, default=0.0)
    has_have = "has" if 1 in (shown, len(results)) else "have"
    text = (
        f"{shown} of {counted(len(results), 'image')} {has_have} detections above {score:g}; the"
        f" highest score is {told_apart(top, score)}"
    )
    return text if shown else f"{text}. Lower --detections.score to draw more."


def category_ids(trainer: Trainer) -> list[int]:
    """Category id of each class in the annotation files, or indices if the data has none."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return list(getattr(data, "category_ids", range(data.num_classes)))
