"""AP of PASCAL VOC is that of a plain computation from its definition."""

from __future__ import annotations

from statistics import mean

import pytest

from src.metrics.voc import VOCMetric
from tests.metrics.scenes import (
    Scene,
    area_under_curve,
    best_precision,
    curve,
    iou,
    random_scenes,
    score,
)

CLASSES = 4


def plain_ap(scenes: list[Scene], label: int, eleven_points: bool) -> float | None:
    hits, number = [], 0
    for scene in scenes:
        truth = [a for a in scene.annotations if a["category_id"] == label]
        number += sum(not a.get("ignore") for a in truth)
        taken = set()
        found = sorted((f for f in scene.found if f[2] == label), key=lambda f: -f[1])
        for box, value, _ in found:
            ious = [iou(box, a["bbox"], extra=1) for a in truth]
            nearest = ious.index(max(ious)) if ious else 0
            if not ious or ious[nearest] < 0.5:
                hits.append((value, False))
            elif not truth[nearest].get("ignore"):
                hits.append((value, nearest not in taken))
                taken.add(nearest)
    if not number:
        return None
    if not eleven_points:
        return area_under_curve(hits, number)
    points = curve(hits, number)
    return mean(best_precision(points, tenth * 0.1) for tenth in range(11))


@pytest.mark.parametrize("eleven_points", [True, False], ids=["2007", "2012"])
@pytest.mark.parametrize("seed", range(20))
def test_equal_to_a_plain_computation(seed: int, eleven_points: bool) -> None:
    scenes = random_scenes(seed, CLASSES, "ignore")
    scores = score(VOCMetric(CLASSES, eleven_points=eleven_points), scenes)
    expected = [plain_ap(scenes, label, eleven_points) for label in range(CLASSES)]
    found = scores["bbox_class_AP"].tolist()
    wanted = [float("nan") if ap is None else ap for ap in expected]
    assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    ap = mean(ap for ap in expected if ap is not None)
    assert float(scores["bbox_AP"]) == pytest.approx(ap, abs=1e-12)


def test_eleven_points_by_hand() -> None:
    truth = [
        {"category_id": 0, "bbox": [0, 0, 20, 20]},
        {"category_id": 0, "bbox": [50, 50, 20, 20]},
        {"category_id": 0, "bbox": [80, 0, 20, 20], "ignore": 1},  # difficult: need not be found
    ]
    found = [([0, 0, 20, 20], 0.9, 0), ([30, 0, 9, 9], 0.8, 0), ([80, 0, 20, 20], 0.7, 0)]
    # Recall 0.5 with precision 1: six of the eleven points, or half of the area.
    scenes = [Scene(truth, found)]
    assert float(score(VOCMetric(1, eleven_points=True), scenes)["bbox_AP"]) == 6 / 11
    assert float(score(VOCMetric(1), scenes)["bbox_AP"]) == 0.5
    scores = score(VOCMetric(2), scenes)
    assert scores["bbox_class_AP"].isnan().tolist() == [False, True]
    assert scores["class_objects"].tolist() == [2, 0]


def test_boxes_include_their_last_pixel() -> None:
    truth = [{"category_id": 0, "bbox": [0, 0, 3, 3]}]
    found = [([0, 0, 3, 1], 0.9, 0)]  # 8 of 16 pixels; without the last ones, 3 of 9
    assert float(score(VOCMetric(1), [Scene(truth, found)])["bbox_AP"]) == 1


def test_nothing_seen_scores_minus_one() -> None:
    assert float(VOCMetric(2).compute()["bbox_AP"]) == -1


def test_crowds_need_not_be_found_either() -> None:
    ap = [
        float(score(VOCMetric(CLASSES), random_scenes(3, CLASSES, flag))["bbox_AP"])
        for flag in ("ignore", "iscrowd", None)
    ]
    assert ap[0] == ap[1] != ap[2]
