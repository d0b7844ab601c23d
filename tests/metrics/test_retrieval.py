"""Recall of image-text retrieval."""

import pytest
import torch
import torch.nn.functional as F

from src.metrics.retrieval import RetrievalRecall

UNIT = torch.eye(6)


def test_recall_counts_the_own_text_among_the_nearest() -> None:
    metric = RetrievalRecall()
    image = UNIT[[0, 1, 2, 0, 0, 0]] + 0.1 * UNIT[[0, 1, 2, 3, 4, 5]]
    metric.update(image[:4], UNIT[:4], torch.arange(4)[:, None])
    metric.update(image[4:], UNIT[4:], torch.arange(4, 6)[:, None])
    found = metric.compute()
    assert found["image_to_text_recall1"] == pytest.approx(3 / 6)
    assert found["image_to_text_recall5"] == pytest.approx(1.0)
    # The images of texts 3 to 5 are the only ones with a part in their direction.
    assert found["text_to_image_recall1"] == pytest.approx(1.0)


def test_equal_texts_count_as_one() -> None:
    metric = RetrievalRecall()
    text = UNIT[[0, 0, 1, 1]]
    metric.update(text, text, torch.tensor([[1], [1], [2], [2]]))
    assert all(value == 1.0 for value in metric.compute().values())


def test_random_features_are_at_chance() -> None:
    metric = RetrievalRecall()
    torch.manual_seed(0)
    for _ in range(5):
        image, text = (F.normalize(torch.randn(200, 16), dim=1) for _ in range(2))
        metric.update(image, text, torch.randint(0, 10**6, (200, 4)))
    assert metric.compute()["image_to_text_recall5"] < 0.03
