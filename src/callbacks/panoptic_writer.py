"""Write panoptic segments and instances in the formats of COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from src import files
from src.callbacks.classification_writer import class_names
from src.callbacks.detection_writer import category_ids
from src.callbacks.output_names import OutputNames, output_names
from src.callbacks.run_folder import run_folder, tell
from src.callbacks.unreadable import gather
from src.errors import counted
from src.metrics.coco_results import as_annotations, to_results, with_category_ids
from src.types import PanopticSegments


class PanopticWriter(Callback):
    """Write ``panoptic.json``, ``panoptic/*.png`` and ``instances.json`` during ``predict``.

    It acts if ``model.panoptic`` is set. A pixel of a PNG is the id of its segment, red + 256 green
    + 65536 blue, and 0 without a segment. The id of an image is the number that its file is named
    by, as in COCO, if all files have one, else its position.

    Args:
        folder: Output folder; default is the run folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._found: list[dict[str, Any]] = []
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
        """Write the images of a batch, and collect its segments."""
        if not isinstance(outputs, dict) or "segments" not in outputs:
            return
        things = outputs["things"]
        rows = zip(outputs["path"], outputs["segments"], outputs["instances"], strict=True)
        for path, segments, instances in rows:
            name = Path(self._names(path)).with_suffix(".png").as_posix()
            ids = segments.ids.numpy().astype(np.uint32)
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
            image = Image.fromarray(colours.astype(np.uint8))
            files.write_image(run_folder(trainer, self.folder) / "panoptic" / name, image)
            self._found.append(
                {
                    "path": str(path),
                    "file_name": name,
                    "size": ids.shape,
                    "segments": segment_entries(segments),
                    "instances": to_results(instances, 0),
                    "things": sorted(things),
                }
            )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the segments of all ranks and write the two json files."""
        found = {entry["path"]: entry for entry in gather(self._found)}
        self._found = []
        if not found or not trainer.is_global_zero:
            return
        ids = category_ids(trainer)
        entries = [found[path] for path in sorted(found)]
        stems = [Path(entry["path"]).stem for entry in entries]
        named = all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems)
        images, annotations, instances = [], [], []
        for number, (entry, stem) in enumerate(zip(entries, stems, strict=True)):
            image_id = int(stem) if named else number
            height, width = entry["size"]
            images.append(
                {"id": image_id, "file_name": entry["path"], "height": height, "width": width}
            )
            annotations.append(
                {
                    "image_id": image_id,
                    "file_name": entry["file_name"],
                    "segments_info": with_category_ids(entry["segments"], ids),
                }
            )
            instances += [result | {"image_id": image_id} for result in entry["instances"]]
        things = set(entries[0]["things"])
        categories = [
            {"id": category, "name": name, "isthing": int(label in things)}
            for label, (category, name) in enumerate(zip(ids, class_names(trainer), strict=True))
        ]
        head = {"images": images, "categories": categories}
        folder = run_folder(trainer, self.folder)
        panoptic, results = folder / "panoptic.json", folder / "instances.json"
        files.write_json(panoptic, head | {"annotations": annotations}, allow_nan=False)
        annotated = head | {"annotations": as_annotations(instances, ids)}
        files.write_json(results, annotated, allow_nan=False)
        tell(f"Panoptic:    {panoptic} ({counted(len(images), 'image')})")
        tell(f"Instances:   {results}")


def segment_entries(segments: PanopticSegments) -> list[dict[str, Any]]:
    """Segments that have pixels as COCO's ``segments_info``, with class indices."""
    ids = segments.ids.numpy()
    entries: list[dict[str, Any]] = []
    for number, (label, score) in enumerate(
        zip(segments.labels, segments.scores, strict=True), start=1
    ):
        rows, columns = np.nonzero(ids == number)
        left, top = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
        entries.append(
            {
                "id": number,
                "category_id": label,
                "area": len(rows),
                "bbox": [left, top, width, height],
                "iscrowd": 0,
                "score": score,
            }
        )
    return entries
