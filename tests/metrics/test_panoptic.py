"""Panoptic quality of files is that of the plain definition."""

import json

import numpy as np
import pytest
from PIL import Image

from src.errors import UserError
from src.metrics.panoptic import panoptic_quality

CLASSES = 4
CATEGORIES = [{"id": i + 1, "name": f"class {i}", "isthing": i % 2} for i in range(CLASSES)]
SHAPE = (12, 16)


def random_segments(rng, labelled=0.9):
    """Map of segment ids, some pixels without one, and the class of each segment."""
    blocks = rng.integers(1, 7, (3, 4))
    ids = np.kron(blocks, np.ones((4, 4), dtype=np.int64))
    ids[rng.random(SHAPE) > labelled] = 0
    return ids, {int(i): int(rng.integers(CLASSES)) for i in np.unique(ids) if i}


def similar_segments(rng, ids, classes):
    """A prediction: the truth, moved, with some other classes and some pixels left out."""
    moved = np.roll(ids, rng.integers(0, 3, 2), axis=(0, 1))
    moved[rng.random(SHAPE) > 0.9] = 0
    found = {i: c if rng.random() < 0.8 else int(rng.integers(CLASSES)) for i, c in classes.items()}
    return moved, {i: c for i, c in found.items() if (moved == i).any()}


def write(path, images, crowds=()):
    """Segments of images in COCO's panoptic format."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    annotations = []
    for number, (ids, classes) in enumerate(images):
        colours = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1)
        Image.fromarray(colours.astype(np.uint8)).save(folder / f"{number}.png")
        entries = [
            {
                "id": i,
                "category_id": label + 1,
                "area": int((ids == i).sum()),
                "bbox": [0, 0, 1, 1],
                "iscrowd": int((number, i) in crowds),
            }
            for i, label in classes.items()
        ]
        annotations.append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": entries}
        )
    head = [{"id": n, "height": SHAPE[0], "width": SHAPE[1]} for n in range(len(images))]
    content = {"images": head, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(content))
    return path


def plain_quality(truths, predictions, crowds=()):
    """PQ of each class: IoUs of matches over matches and half of what is unmatched."""
    iou_sum, matches, unmatched = np.zeros(CLASSES), np.zeros(CLASSES), np.zeros(CLASSES)
    for number, ((truth, true_class), (found, found_class)) in enumerate(
        zip(truths, predictions, strict=True)
    ):
        true_left = {i for i in true_class if (number, i) not in crowds}
        found_left = set(found_class)
        for i in sorted(true_left):
            for j in found_class:
                same = true_class[i] == found_class[j]
                both = ((truth == i) & (found == j)).sum()
                either = ((truth == i) | ((found == j) & (truth != 0))).sum()
                if same and both / either > 0.5:
                    iou_sum[true_class[i]] += both / either
                    matches[true_class[i]] += 1
                    true_left.discard(i)
                    found_left.discard(j)
        for i in true_left:
            unmatched[true_class[i]] += 1
        for j in found_left:
            inside = found == j
            void = inside & (truth == 0)
            for i, label in true_class.items():
                if (number, i) in crowds and label == found_class[j]:
                    void |= inside & (truth == i)
            if void.sum() / inside.sum() <= 0.5:
                unmatched[found_class[j]] += 1
    counts = matches + unmatched / 2
    present = counts > 0
    return (iou_sum[present] / counts[present]).mean()


@pytest.mark.parametrize("seed", range(20))
def test_random_cases(tmp_path, seed):
    rng = np.random.default_rng(seed)
    truths = [random_segments(rng) for _ in range(3)]
    predictions = [similar_segments(rng, *truth) for truth in truths]
    crowds = {(0, next(iter(truths[0][1])))} if seed % 2 else set()
    found = panoptic_quality(
        write(tmp_path / "found.json", predictions), write(tmp_path / "truth.json", truths, crowds)
    )
    assert found["PQ"] == pytest.approx(plain_quality(truths, predictions, crowds), abs=1e-9)


def test_the_truth_is_perfect(tmp_path):
    truths = [random_segments(np.random.default_rng(0))]
    paths = [write(tmp_path / name, truths) for name in ("a.json", "b.json")]
    found = panoptic_quality(*paths)
    assert found["PQ"] == found["SQ"] == found["RQ"] == 1


def test_a_missed_segment_counts_although_it_has_no_prediction(tmp_path):
    ids, classes = np.ones(SHAPE, dtype=np.int64), {1: 0, 2: 0}
    ids[:, 8:] = 2
    half = np.where(ids == 1, 1, 0)
    found = panoptic_quality(
        write(tmp_path / "found.json", [(half, {1: 0})]),
        write(tmp_path / "truth.json", [(ids, classes)]),
    )
    assert found["PQ"] == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("truth", [[], {}, {"images": [], "annotations": [], "categories": []}])
def test_a_truth_without_segments_is_refused(tmp_path, truth):
    found = write(tmp_path / "found.json", [random_segments(np.random.default_rng(0))])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "truth").mkdir()
    with pytest.raises(UserError, match=r"truth\.json has no segments"):
        panoptic_quality(found, tmp_path / "truth.json")


def test_missing_files_are_named(tmp_path):
    path = write(tmp_path / "truth.json", [random_segments(np.random.default_rng(0))])
    with pytest.raises(UserError, match=r"absent.json \(predictions\) does not exist"):
        panoptic_quality(tmp_path / "absent.json", path)
    other = write(tmp_path / "other.json", [random_segments(np.random.default_rng(0))])
    next((tmp_path / "other").glob("*.png")).unlink()
    with pytest.raises(UserError, match=r"other.json cannot be compared"):
        panoptic_quality(other, path)
