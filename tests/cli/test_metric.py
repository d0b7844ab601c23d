"""A recipe can name a metric of one's own; tables, monitors and logs follow it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from src.cli import main
from src.metrics.coco import COCOMetric
from src.metrics.segmentation import SegmentationMetric
from tests.cli.tiny import write_data, write_recipe


class WithFrequencyWeights(SegmentationMetric):
    """The metrics of ADE20K, and IoU weighted by the number of pixels of each class."""

    @property
    def score_names(self) -> tuple[str, ...]:
        return (*super().score_names, "fwIoU")

    def compute(self) -> dict[str, Tensor]:
        scores = super().compute()
        pixels = self.confusion.sum(1).double()
        return scores | {"fwIoU": (scores["IoU"] * pixels).nansum() / pixels.sum()}


class WithCounts(COCOMetric):
    """The metrics of COCO, and the number of detections of every class."""

    @property
    def score_names(self) -> tuple[str, ...]:
        return (*super().score_names, "images")

    def compute(self) -> dict[str, Tensor]:
        scores = super().compute()
        counts = torch.zeros(self.num_classes)
        for result in self.results:
            counts[result["category_id"]] += 1
        return scores | {"images": torch.tensor(float(len(self.scored))), "found": counts}


@pytest.mark.parametrize(
    ("task", "metric", "score", "column"),
    [
        ("segmentation", WithFrequencyWeights, "fwIoU", "IoU"),
        ("detection", WithCounts, "images", "found"),
    ],
)
def test_a_metric_of_ones_own(
    tmp_path: Path, task: str, metric: type, score: str, column: str
) -> None:
    config = write_recipe(tmp_path, task, write_data(tmp_path / "data", task))
    recipe: dict[str, Any] = yaml.safe_load(config.read_text())
    recipe["model"]["init_args"]["metric"] = {"class_path": f"{__name__}.{metric.__name__}"}
    config.write_text(yaml.safe_dump(recipe))
    assert main(["fit", "-c", str(config), "--checkpoint.monitor", f"val/{score}"]) == 0
    (folder,) = (tmp_path / "runs" / task).glob("version_*")
    assert f"val/{score}" in (folder / "metrics.csv").read_text().splitlines()[0]
    assert column in (folder / "classes_val.csv").read_text().splitlines()[0].split(",")
