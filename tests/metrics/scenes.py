"""Random small scenes with boxes, and their detections, for tests of detection metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from src.types import Detections, ImageLabels

SIZE = (100, 120)


@dataclass
class Scene:
    """An image: its annotations, detections ``(box, score, label)``, and checked classes."""

    annotations: list[dict[str, Any]] = field(default_factory=list)
    found: list[tuple[list[float], float, int]] = field(default_factory=list)
    labels: ImageLabels = field(default_factory=ImageLabels)


def random_scenes(seed: int, num_classes: int, flag: str | None = None) -> list[Scene]:
    """Some images with a few boxes each; ``flag`` is set in some annotations."""
    rng = np.random.default_rng(seed)
    return [_scene(rng, num_classes, flag) for _ in range(rng.integers(3, 7))]


def _scene(rng: np.random.Generator, num_classes: int, flag: str | None) -> Scene:
    scene = Scene()
    classes = rng.permutation(num_classes)
    present, absent = np.split(classes[: num_classes * 2 // 3], [num_classes // 3])
    for label in present:
        for _ in range(rng.integers(0, 4)):
            box = [*rng.integers(0, 60, 2), *rng.integers(8, 40, 2)]
            box = [float(value) for value in box]
            annotation = {"category_id": int(label), "bbox": box, "area": box[2] * box[3]}
            annotation |= {"iscrowd": 0, "segmentation": []}
            if flag is not None and rng.random() < 0.3:
                annotation[flag] = 1
            scene.annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):  # none, one, or several that compete
                moved = (np.array(box) + rng.normal(0, 3, 4)).tolist()
                other = int(rng.integers(num_classes))
                guess = int(label) if rng.random() < 0.8 else other
                scene.found.append((moved, float(rng.random()), guess))
    for _ in range(rng.integers(0, 6)):
        box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]
        scene.found.append((box, float(rng.random()), int(rng.integers(num_classes))))
    scene.labels = ImageLabels(
        present=tuple(int(label) for label in present[:1]),
        absent=tuple(int(label) for label in absent),
        not_exhaustive=tuple(int(label) for label in present[-1:]),
    )
    return scene


def detections_of(scene: Scene) -> Detections:
    """What a detector returns for an image."""
    boxes = torch.tensor([box for box, _, _ in scene.found], dtype=torch.float64).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes,
        torch.tensor([score for _, score, _ in scene.found], dtype=torch.float64),
        torch.tensor([label for _, _, label in scene.found], dtype=torch.long),
    )


def score(metric: Any, scenes: list[Scene]) -> dict[str, Any]:
    """Scores of a metric, image by image; the ids are text."""
    for number, scene in enumerate(scenes):
        metric.update(
            [detections_of(scene)], [f"{number}"], [SIZE], [scene.annotations], [scene.labels]
        )
    return metric.compute()


def overlap(a: list[float], b: list[float], extra: float = 0.0) -> float:
    """Area of the intersection of two boxes ``x, y, width, height``."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + extra
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + extra
    return max(width, 0.0) * max(height, 0.0)


def iou(a: list[float], b: list[float], extra: float = 0.0) -> float:
    """Intersection over union; with ``extra`` 1, boxes include their last column and row."""
    shared = overlap(a, b, extra)
    areas = ((c[2] + extra) * (c[3] + extra) for c in (a, b))
    return shared / (sum(areas) - shared)


def area_under_curve(hits: list[tuple[float, bool]], number: int) -> float:
    """Area under the interpolated precision-recall curve of ``(score, is right)``."""
    points = curve(hits, number)
    area, last = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - last) * best_precision(points, recall)
        last = recall
    return area


def curve(hits: list[tuple[float, bool]], number: int) -> list[tuple[float, float]]:
    """Recall and precision after each detection, best first."""
    points, right = [], 0
    for count, (_, is_right) in enumerate(sorted(hits, key=lambda hit: -hit[0]), 1):
        right += is_right
        points.append((right / number, right / count))
    return points


def best_precision(points: list[tuple[float, float]], recall: float) -> float:
    """Highest precision at a recall or above."""
    return max((p for r, p in points if r >= recall), default=0.0)
