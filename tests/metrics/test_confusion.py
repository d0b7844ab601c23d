"""The confusion matrix of classified images."""

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from src.metrics.confusion import ConfusionMatrix


def test_counts_are_those_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(7, (2, 60), generator=random)
    metric = ConfusionMatrix(7)
    for start in (0, 40):
        metric.update(prediction[start : start + 40], label[start : start + 40])
    expected = multiclass_confusion_matrix(prediction, label, num_classes=7)
    assert torch.equal(metric.compute(), expected)


def test_deterministic_algorithms_need_no_further_memory() -> None:
    """With one number per image and pair of classes, this would take 16 GB."""
    metric = ConfusionMatrix(1000)
    label = torch.arange(2000) % 1000
    torch.use_deterministic_algorithms(True)
    try:
        metric.update(label, label)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(metric.compute(), 2 * torch.eye(1000, dtype=torch.int64))
