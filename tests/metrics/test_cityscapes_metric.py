"""IoU of instances: against counting instance by instance."""

import numpy as np
import pytest
import torch

from src.data.datasets.cityscapes import AVERAGE_INSTANCE_SIZES, instance_weights
from src.metrics.cityscapes import CityscapesMetric

PERSON, CAR = 24, 26
TRAIN_IDS = {PERSON: 1, CAR: 2}
CLASSES = 3


def images(count=20):
    """Instances, labels and predictions of random blocks; the label 0 has no instances."""
    random = np.random.default_rng(0)
    for _ in range(count):
        cells = random.integers(0, 7, (4, 5))
        kinds = [7, 7, PERSON, PERSON * 1000, PERSON * 1000 + 1, CAR * 1000, CAR * 1000 + 1]
        instances = np.kron(np.array(kinds)[cells], np.ones((3, 4), int))
        label_ids = np.where(instances >= 1000, instances // 1000, instances)
        labels = np.vectorize(lambda n: TRAIN_IDS.get(n, 0))(label_ids)
        labels[0] = 255
        prediction = np.where(random.random(labels.shape) < 0.6, labels, 0)
        yield instances, labels, np.where(prediction == 255, 1, prediction)


def counted(label_id):
    """The score of a class as the benchmark defines it, instance by instance."""
    number, hits, misses, false = TRAIN_IDS[label_id], 0.0, 0.0, 0
    for instances, labels, prediction in images():
        for instance in np.unique(instances[instances // 1000 == label_id]):
            inside = instances == instance
            weight = AVERAGE_INSTANCE_SIZES[label_id] / inside.sum()
            inside &= labels != 255
            hits += weight * (prediction[inside] == number).sum()
            misses += weight * (prediction[inside] != number).sum()
        false += ((prediction == number) & (labels != number) & (labels != 255)).sum()
    return hits / (hits + misses + false)


def test_instances_count_alike():
    metric = CityscapesMetric(CLASSES)
    for instances, labels, prediction in images():
        weight = instance_weights(instances)
        for rows in (slice(0, 5), slice(5, None)):  # images come in strips
            metric.update(
                torch.from_numpy(prediction[rows]), torch.from_numpy(labels[rows]), weight[rows]
            )
    expected = (counted(PERSON) + counted(CAR)) / 2
    assert float(metric.compute()["iIoU"]) == pytest.approx(expected, rel=1e-5)
    assert set(metric.score_names) <= metric.compute().keys()


def test_without_instances_there_is_no_score():
    metric = CityscapesMetric(CLASSES)
    _, labels, prediction = next(images())
    metric.update(torch.from_numpy(prediction), torch.from_numpy(labels))
    scores = metric.compute()
    assert scores["iIoU"].isnan()
    assert not scores["mIoU"].isnan()
