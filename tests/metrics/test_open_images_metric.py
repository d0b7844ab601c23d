"""AP of OpenImages is that of a plain computation from its definition."""

from __future__ import annotations

import warnings
from statistics import mean

import pytest

from src.errors import UserError
from src.metrics.open_images import OpenImagesMetric
from src.types import ClassFacts
from tests.metrics.scenes import Scene, area_under_curve, iou, overlap, random_scenes, score

CLASSES = 6
ANCESTORS = ((), (0,), (1, 0), (0,), (), (4,))  # 2 is a 1, 1 and 3 are a 0, 5 is a 4


def plain_ap(scenes: list[Scene], label: int) -> float | None:
    hits, number = [], 0
    for scene in scenes:
        truth = [a for a in scene.annotations if label in covered(a["category_id"])]
        number += len(truth)
        if not truth and label not in (*scene.labels.present, *scene.labels.absent):
            continue  # the class was not checked in this image
        found = [f for f in scene.found if label in covered(f[2])]
        hits += match(sorted(found, key=lambda f: -f[1]), truth)
    return area_under_curve(hits, number) if number else None


def covered(label: int) -> tuple[int, ...]:
    return (label, *ANCESTORS[label])


def match(found, truth) -> list[tuple[float, bool]]:
    """Score of each detection that counts, and whether it is right; best first."""
    single = [a["bbox"] for a in truth if not a.get("is_group_of")]
    groups = [a["bbox"] for a in truth if a.get("is_group_of")]
    hits, taken, best_in_group = [], set(), {}
    for box, value, _ in found:
        ious = [iou(box, other) for other in single]
        nearest = ious.index(max(ious)) if ious else None
        if nearest is not None and ious[nearest] >= 0.5 and nearest not in taken:
            taken.add(nearest)
            hits.append((value, True))
            continue
        inside = [overlap(box, other) / (box[2] * box[3]) for other in groups]
        if inside and max(inside) >= 0.5:
            best_in_group.setdefault(inside.index(max(inside)), value)
        else:
            hits.append((value, False))
    return hits + [(value, True) for value in best_in_group.values()]


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_a_plain_computation(seed: int) -> None:
    scenes = random_scenes(seed, CLASSES, "is_group_of")
    metric = OpenImagesMetric(CLASSES)
    metric.class_facts = ClassFacts(ancestors=ANCESTORS)
    scores = score(metric, scenes)
    expected = [plain_ap(scenes, label) for label in range(CLASSES)]
    found = scores["bbox_class_AP"].tolist()
    wanted = [float("nan") if ap is None else ap for ap in expected]
    assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    ap = mean(ap for ap in expected if ap is not None)
    assert float(scores["bbox_AP"]) == pytest.approx(ap, abs=1e-9)


def test_a_hierarchy_of_other_classes_is_refused() -> None:
    metric = OpenImagesMetric(CLASSES)
    metric.class_facts = ClassFacts(ancestors=ANCESTORS[:3])
    with pytest.raises(UserError, match="hierarchy of 3 classes, but the network has 6"):
        score(metric, random_scenes(0, CLASSES))


def test_nothing_seen_scores_minus_one() -> None:
    assert float(OpenImagesMetric(2).compute()["bbox_AP"]) == -1


def test_boxes_without_area_are_wrong_without_a_warning() -> None:
    truth = [
        {"category_id": 0, "bbox": [5, 5, 0, 4], "is_group_of": 1},
        {"category_id": 0, "bbox": [1, 1, 0, 0]},
        {"category_id": 0, "bbox": [10, 10, 20, 20]},
    ]
    found = [([10, 10, 20, 20], 0.9, 0), ([40, 40, 0, 0], 0.8, 0), ([5, 5, 0, 4], 0.7, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(OpenImagesMetric(1), [Scene(truth, found)])
    assert float(found["bbox_AP"]) == pytest.approx(1 / 3)


def test_crowds_are_groups() -> None:
    ap = [
        float(score(OpenImagesMetric(CLASSES), random_scenes(3, CLASSES, flag))["bbox_AP"])
        for flag in ("is_group_of", "iscrowd", None)
    ]
    assert ap[0] == ap[1] != ap[2]
