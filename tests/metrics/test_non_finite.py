"""Results of networks that have diverged count as wrong, for every task."""

import math

import pytest
import torch
from torch import Tensor

from src.metrics.coco import COCOMetric
from src.metrics.coco_results import only_finite, to_results
from src.metrics.segmentation import SegmentationMetric
from src.models import InternImage
from src.tasks import ClassificationTask
from src.tasks.classification import _wrong_unless_finite
from src.tasks.segmentation import _decide
from src.types import Detections

NAN, INF = math.nan, math.inf
TRUTH = {"category_id": 0, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "segmentation": []}
RIGHT = [10.0, 10.0, 30.0, 30.0]


def detections(boxes: list[list[float]], scores: list[float]) -> Detections:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Detections(torch.tensor(boxes), torch.tensor(scores), labels)


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([RIGHT], [0.9], 1.0),
        ([[NAN] * 4], [0.9], 0.0),
        ([[10.0, 10.0, INF, 30.0]], [0.9], 0.0),
        ([RIGHT], [NAN], 0.0),
        ([[NAN] * 4, RIGHT], [NAN, 0.5], 1.0),
    ],
)
def test_boxes_and_scores_that_are_not_finite_are_no_detections(
    boxes: list[list[float]], scores: list[float], expected: float
) -> None:
    metric = COCOMetric(1, kinds=("bbox",))
    metric.update([detections(boxes, scores)], [1], [(96, 96)], [[TRUTH]])
    assert float(metric.compute()["bbox_AP"]) == pytest.approx(expected)


def test_masks_go_with_their_boxes() -> None:
    found = detections([RIGHT, RIGHT, [NAN] * 4], [0.9, 0.8, 0.7])
    found.masks = torch.ones(3, 40, 40)
    found.masks[1, 0, 0] = NAN
    kept = only_finite(found)
    assert kept.scores.tolist() == pytest.approx([0.9])
    assert [result["score"] for result in to_results(found, 1)] == pytest.approx([0.9])


def test_pixels_without_a_class_are_wrong() -> None:
    probability = torch.tensor([[0.9, 0.1, NAN, 0.9], [0.1, 0.9, 0.5, INF]]).view(2, 1, 4)
    classes = _decide(probability, 2)
    assert classes.tolist() == [[0, 1, 2, 2]]
    metric = SegmentationMetric(2)
    metric.update(classes, torch.tensor([[0, 1, 0, 1]]))
    scores = metric.compute()
    assert scores["IoU"].tolist() == [0.5, 0.5]
    assert float(scores["aAcc"]) == 0.5


def test_logits_that_are_not_finite_name_the_wrong_class() -> None:
    task = ClassificationTask(num_classes=8, network=InternImage)
    metrics = task.build_metrics()
    logits = torch.full((8, 8), NAN)
    logits[7] = torch.arange(8.0)
    logits[6] = torch.arange(8.0).where(torch.arange(8) != 6, torch.tensor(INF))
    label: Tensor = torch.arange(8)
    metrics.update(_wrong_unless_finite(logits, label), label)
    assert float(metrics.compute()["top1"]) == pytest.approx(1 / 8)
    assert float(metrics.compute()["top5"]) < 1
