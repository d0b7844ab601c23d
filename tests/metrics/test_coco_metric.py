"""COCO numbers are those of pycocotools, with one process and with two."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.metrics.coco import NUMBERS, COCOMetric
from src.metrics.coco_results import as_annotations, to_results, with_category_ids
from src.types import Detections

SIZE = (120, 160)
NUM_CLASSES = 3


def make_dataset(num_images=12):
    """Ellipses of three classes, a crowd, an empty image; class indices as categories."""
    rng = np.random.default_rng(0)
    images = [{"id": 10 + i, "height": SIZE[0], "width": SIZE[1]} for i in range(num_images)]
    annotations = []
    for number, image in enumerate(images[1:]):
        for _ in range(rng.integers(1, 5)):
            mask = ellipse(rng)
            code = coco_mask.encode(np.asfortranarray(mask))
            is_crowd = int(number % 4 == 0 and rng.random() < 0.3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.integers(NUM_CLASSES)),
                    "bbox": coco_mask.toBbox(code).tolist(),
                    "area": float(coco_mask.area(code)),
                    "iscrowd": is_crowd,
                    "segmentation": {**code, "counts": code["counts"].decode()},
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in range(NUM_CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def ellipse(rng, shift=0):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    cy, cx, ry, rx = rng.uniform((20, 20, 6, 6), (100, 140, 50, 60))
    return (((y - cy) / ry) ** 2 + ((x - cx - shift) / rx) ** 2 <= 1).astype(np.uint8)


def detections_of(dataset, image, noise=0.0):
    """The objects of an image as detections; with noise some move, change class or get lost."""
    rng = np.random.default_rng(image["id"])
    truth = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
    kept = [a for a in truth if not a["iscrowd"] and (noise == 0 or rng.random() > 0.1)]
    boxes, labels, masks = [], [], []
    for annotation in kept:
        mask = coco_mask.decode(annotation["segmentation"])
        x, y, w, h = annotation["bbox"]
        shift = rng.normal(0, noise, 4)
        boxes.append([x + shift[0], y + shift[1], x + w + shift[2], y + h + shift[3]])
        masks.append(np.roll(mask, int(shift[0]), axis=1))
        change = noise > 0 and rng.random() < 0.2
        labels.append((annotation["category_id"] + change) % NUM_CLASSES)
    return Detections(
        torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        torch.from_numpy(rng.uniform(0.1, 1, len(kept))),
        torch.tensor(labels, dtype=torch.long),
        torch.from_numpy(np.array(masks).reshape(-1, *SIZE)).bool(),
    )


def score(dataset, images, noise):
    metric = COCOMetric(NUM_CLASSES)
    for image in images:
        truth = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
        metric.update([detections_of(dataset, image, noise)], [image["id"]], [SIZE], [truth])
    return metric.compute()


def score_by_hand(dataset, noise, kind):
    results = [
        result
        for image in dataset["images"]
        for result in to_results(detections_of(dataset, image, noise), image["id"])
    ]
    for result in results:  # a result's area is that of what is scored
        result.pop("bbox" if kind == "segm" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(dataset))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_truth_scored_as_detections_is_perfect():
    dataset = make_dataset()
    scores = score(dataset, dataset["images"], noise=0.0)
    assert scores["bbox_AP"] == 1
    assert scores["segm_AP"] == 1
    assert scores["bbox_class_AP"].tolist() == [1, 1, 1]
    labels = [a["category_id"] for a in dataset["annotations"] if not a["iscrowd"]]
    assert scores["class_objects"].tolist() == [labels.count(label) for label in range(NUM_CLASSES)]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_same_twelve_numbers_as_pycocotools_by_hand(kind):
    dataset = make_dataset()
    scores = score(dataset, dataset["images"], noise=4.0)
    by_hand = score_by_hand(dataset, 4.0, kind)
    assert 0.1 < by_hand[0] < 0.9
    assert [float(scores[f"{kind}_{name}"]) for name in NUMBERS] == pytest.approx(by_hand)


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_images_called_by_names_score_the_same(backend):
    pytest.importorskip(backend)
    dataset, named = make_dataset(), COCOMetric(NUM_CLASSES, backend=backend)
    for image in dataset["images"]:
        truth = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
        found = detections_of(dataset, image, noise=4.0)
        named.update([found], [f"image {image['id']}"], [SIZE], [truth])
    numbered = score(dataset, dataset["images"], noise=4.0)
    for key, value in named.compute().items():
        torch.testing.assert_close(value, numbered[key], rtol=0, atol=1e-9, equal_nan=True)


def test_nothing_found_scores_zero_and_nothing_seen_minus_one():
    dataset = make_dataset()
    metric = COCOMetric(NUM_CLASSES)
    assert metric.compute()["bbox_AP"] == -1
    metric.reset()
    nothing = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, *SIZE).bool()
    )
    metric.update([nothing], [11], [SIZE], [dataset["annotations"][:2]])
    scores = metric.compute()
    assert scores["bbox_AP"] == 0
    assert scores["segm_AP50"] == 0


def test_reset_forgets():
    dataset = make_dataset()
    metric = COCOMetric(NUM_CLASSES)
    image = dataset["images"][1]
    truth = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
    metric.update([detections_of(dataset, image)], [image["id"]], [SIZE], [truth])
    metric.reset()
    assert metric.compute()["bbox_AP"] == -1


def test_results_name_the_categories_of_the_file():
    dataset = make_dataset()
    results = to_results(detections_of(dataset, dataset["images"][2]), 12)
    named = with_category_ids(results, [7, 8, 90])
    labels = [result["category_id"] for result in results]
    assert [result["category_id"] for result in named] == [[7, 8, 90][i] for i in labels]
    assert json.loads(json.dumps(named)) == named


def test_results_are_written_as_annotations_that_the_coco_tools_load(tmp_path):
    dataset = make_dataset()
    masks = to_results(detections_of(dataset, dataset["images"][2]), 12)
    boxes = [{k: v for k, v in result.items() if k != "segmentation"} for result in masks]
    for results in (masks, boxes, []):
        annotations = as_annotations(results, [7, 8, 90])
        categories = [{"id": number, "name": str(number)} for number in (7, 8, 90)]
        content = {"images": dataset["images"], "categories": categories}
        (tmp_path / "found.json").write_text(json.dumps(content | {"annotations": annotations}))
        with contextlib.redirect_stdout(io.StringIO()):
            loaded = COCO(str(tmp_path / "found.json"))
        assert sorted(loaded.anns) == list(range(1, len(results) + 1))
        for result, annotation in zip(results, loaded.loadAnns(sorted(loaded.anns)), strict=True):
            assert annotation["score"] == result["score"]
            assert annotation["iscrowd"] == 0
            _, _, width, height = annotation["bbox"]
            whole = "segmentation" in result
            area = loaded.annToMask(annotation).sum() if whole else width * height
            assert annotation["area"] == area > 0
    assert len(masks) > 0


def _score_a_share(rank, address, queue):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    dataset = make_dataset(num_images=11)
    images = [*dataset["images"], dataset["images"][0]]  # 12: one image twice, as samplers do
    scores = score(dataset, images[rank::2], noise=4.0)
    queue.put((rank, {key: value.tolist() for key, value in scores.items()}))
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    dataset = make_dataset(num_images=11)
    alone = score(dataset, dataset["images"], noise=4.0)
    queue = mp.get_context("spawn").SimpleQueue()
    workers = mp.spawn(
        _score_a_share, (f"file://{tmp_path / 'meeting'}", queue), nprocs=2, join=False
    )
    while not workers.join():  # first, so that a failed process is an error and not a wait
        pass
    together = dict(queue.get() for _ in range(2))
    assert together[0] == together[1] == {key: value.tolist() for key, value in alone.items()}
