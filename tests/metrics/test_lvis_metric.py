"""AP of LVIS is that of a plain computation from its definition."""

from __future__ import annotations

import builtins
from statistics import mean

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.metrics.lvis import LVISMetric
from src.types import ClassFacts, Detections
from tests.metrics.scenes import (
    SIZE,
    Scene,
    best_precision,
    curve,
    iou,
    random_scenes,
    score,
)

CLASSES = 6
FREQUENCIES = ("r", "c", "f", "r", "c", "f")
RECALLS = np.linspace(0, 1, 101)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def make_metric(**arguments):
    metric = LVISMetric(CLASSES, **arguments)
    metric.class_facts = ClassFacts(frequencies=FREQUENCIES)
    return metric


def plain_ap(scenes: list[Scene], label: int, threshold: float) -> float | None:
    hits, number = [], 0
    for scene in scenes:
        truth = [a["bbox"] for a in scene.annotations if a["category_id"] == label]
        number += len(truth)
        if not truth and label not in scene.labels.absent:
            continue  # the class was not checked in this image
        found = sorted((f for f in scene.found if f[2] == label), key=lambda f: -f[1])
        free = list(range(len(truth)))
        for box, value, _ in found:
            near = [g for g in free if iou(box, truth[g]) >= threshold]
            if near:
                free.remove(max(near, key=lambda g: iou(box, truth[g])))
                hits.append((value, True))
            elif label not in scene.labels.not_exhaustive:
                hits.append((value, False))
    if not number:
        return None
    points = curve(hits, number)
    return mean(best_precision(points, recall) for recall in RECALLS)


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_a_plain_computation(seed: int) -> None:
    scenes = random_scenes(seed, CLASSES)
    scores = score(make_metric(), scenes)
    aps = [[plain_ap(scenes, label, t) for t in THRESHOLDS] for label in range(CLASSES)]
    of_class = {label: mean(row) for label, row in enumerate(aps) if row[0] is not None}
    assert float(scores["bbox_AP"]) == pytest.approx(mean(of_class.values()), abs=1e-9)
    fifty = [row[0] for row in aps if row[0] is not None]
    assert float(scores["bbox_AP50"]) == pytest.approx(mean(fifty), abs=1e-9)
    for name, letter in (("rare", "r"), ("common", "c"), ("frequent", "f")):
        part = [ap for label, ap in of_class.items() if FREQUENCIES[label] == letter]
        expected = mean(part) if part else -1
        assert float(scores[f"bbox_AP_{name}"]) == pytest.approx(expected, abs=1e-9)
    for label, value in enumerate(scores["bbox_class_AP"].tolist()):
        expected = of_class.get(label, float("nan"))
        assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_only_the_best_detections_of_an_image_are_scored() -> None:
    scenes = random_scenes(3, CLASSES)
    few = [Scene(s.annotations, sorted(s.found, key=lambda f: -f[1])[:4], s.labels) for s in scenes]
    limited = score(make_metric(max_detections=4), scenes)
    expected = score(make_metric(), few)
    assert float(limited["bbox_AP"]) == float(expected["bbox_AP"])
    assert float(limited["bbox_AP"]) != float(score(make_metric(), scenes)["bbox_AP"])


def test_masks() -> None:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, 10:50, 10:70] = True
    found = Detections(
        torch.tensor([[10.0, 10, 70, 50]]), torch.tensor([0.9]), torch.tensor([2]), mask
    )
    polygon = [10, 10, 70, 10, 70, 50, 10, 50]
    truth = {"category_id": 2, "bbox": [10, 10, 60, 40], "area": 2400, "segmentation": [polygon]}
    metric = make_metric(kinds=("bbox", "segm"))
    metric.update([found], [7], [SIZE], [[truth | {"iscrowd": 0}]])
    scores = metric.compute()
    assert float(scores["segm_AP"]) == pytest.approx(1)
    assert float(scores["segm_AP_frequent"]) == pytest.approx(1)
    assert metric.score_names[:2] == ("bbox_AP", "bbox_AP50")
    assert set(metric.score_names) == {name for name, value in scores.items() if value.ndim == 0}
    assert len(metric.results) == 1


def test_frequencies_are_needed() -> None:
    metric = LVISMetric(CLASSES)
    with pytest.raises(UserError, match="needs the frequency of every class"):
        score(metric, random_scenes(0, CLASSES))


def test_without_hotcoco_the_error_says_how_to_install_it(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "hotcoco":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install hotcoco"):
        score(make_metric(), random_scenes(0, CLASSES))
