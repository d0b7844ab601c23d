"""mIoU, mAcc, aAcc: against plain counting, and over processes."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from src.metrics.segmentation import SegmentationMetric

CLASSES = 7


def images(count=6):
    """Predictions and labels of images of different sizes; class 6 never occurs."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        size = (11 + number, 20 - number)
        label = torch.randint(0, CLASSES - 1, size, generator=generator)
        prediction = torch.where(
            torch.rand(size, generator=generator) < 0.6,
            label,
            torch.randint(0, CLASSES - 1, size, generator=generator),
        )
        label[torch.rand(size, generator=generator) < 0.2] = 255
        yield prediction, label


def counted(pairs):
    """The same numbers from sets of pixels, class by class."""
    prediction = np.concatenate([p.numpy().ravel() for p, _ in pairs])
    label = np.concatenate([t.numpy().ravel() for _, t in pairs])
    prediction, label = prediction[label != 255], label[label != 255]
    iou, accuracy = [], []
    for number in range(CLASSES):
        is_label, is_predicted = label == number, prediction == number
        both, either = (is_label & is_predicted).sum(), (is_label | is_predicted).sum()
        if either:
            iou.append(both / either)
        if is_label.any():
            accuracy.append(both / is_label.sum())
    return {
        "mIoU": np.mean(iou),
        "mAcc": np.mean(accuracy),
        "aAcc": (prediction == label).mean(),
    }


def measure(pairs):
    metric = SegmentationMetric(CLASSES)
    for prediction, label in pairs:
        metric.update(prediction, label)
    return metric


def test_equals_plain_counting():
    pairs = list(images())
    scores = measure(pairs).compute()
    for name, expected in counted(pairs).items():
        assert scores[name].item() == pytest.approx(expected, rel=1e-12)
    assert scores["IoU"].shape == (CLASSES,)
    assert scores["IoU"][6].isnan()


def test_ground_truth_is_perfect():
    pairs = [(label.clamp(max=CLASSES - 1), label) for _, label in images()]
    scores = measure(pairs).compute()
    assert scores["mIoU"] == scores["mAcc"] == scores["aAcc"] == 1.0


def test_predicted_but_absent_class_counts_as_zero():
    label = torch.zeros(2, 4, dtype=torch.long)
    scores = measure([(torch.tensor([[0, 0, 0, 1]] * 2), label)]).compute()
    assert scores["mIoU"] == pytest.approx(0.75 / 2)
    assert scores["mAcc"] == pytest.approx(0.75)


def test_nothing_labelled_is_not_a_number():
    ignored = torch.full((3, 3), 255)
    scores = measure([(torch.zeros(3, 3, dtype=torch.long), ignored)]).compute()
    assert all(math.isnan(scores[name]) for name in ("mIoU", "mAcc", "aAcc"))


def work(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    metric = measure(list(images())[rank::2])
    scores = metric.compute()
    results[rank] = {name: scores[name].item() for name in ("mIoU", "mAcc", "aAcc")}
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_same_as_one(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(work, (f"file://{tmp_path / 'meeting'}", results), nprocs=2)
        alone = measure(images()).compute()
        for rank in (0, 1):
            assert dict(results[rank]) == {name: alone[name].item() for name in results[rank]}
