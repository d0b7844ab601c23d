"""Classes drawn equally often, and images of rare classes repeated."""

from collections import Counter

import numpy as np
import pytest

from src.data.samplers.aspect_ratio import AspectRatioSampler
from src.data.samplers.class_aware import ClassAwareSampler, repeat_factors
from src.errors import UserError

IMAGES = [np.arange(10), np.array([3]), np.array([]), np.array([1, 2])]  # of each class


def epoch(batch_size: int = 1, ranks: int = 1, number: int = 0, seed: int = 0) -> list[list[int]]:
    """Indices of each rank."""
    found = []
    for rank in range(ranks):
        sampler = ClassAwareSampler(range(12), IMAGES, batch_size, ranks, rank, seed)
        sampler.set_epoch(number)
        found.append(list(sampler))
    return found


def test_every_class_is_drawn_equally_often() -> None:
    (order,) = epoch()
    assert len(order) == 12
    for start in range(0, 12, 3):  # three classes have images
        drawn = order[start : start + 3]
        assert any(i == 3 for i in drawn)
        assert any(i in (1, 2) for i in drawn)
    assert Counter(i for i in order if i in (1, 2)).total() >= 4


def test_images_of_a_class_come_in_turn() -> None:
    sampler = ClassAwareSampler(range(12), [np.arange(4)], 1)
    order = list(sampler)
    assert all(sorted(order[i : i + 4]) == [0, 1, 2, 3] for i in (0, 4, 8))


def test_order_depends_on_seed_and_epoch_and_not_on_ranks() -> None:
    (alone,) = epoch(batch_size=4)
    two = epoch(batch_size=2, ranks=2)
    joined = [i for step in range(0, 6, 2) for share in two for i in share[step : step + 2]]
    assert joined == alone
    assert epoch(batch_size=4) == [alone]
    assert epoch(batch_size=4, number=1) != [alone]
    assert epoch(batch_size=4, seed=1) == epoch(batch_size=4, number=1)


def test_without_annotations() -> None:
    with pytest.raises(UserError, match="No training image"):
        ClassAwareSampler(range(3), [np.array([])], 1)


def test_repeat_factors_by_hand() -> None:
    images = [np.arange(100), np.arange(25), np.array([0]), np.array([], dtype=int)]
    factors = repeat_factors(images, 100, 0.25)
    # Class 0 is in all images, class 1 in a quarter: 1. Class 2: sqrt(0.25 / 0.01) = 5.
    assert factors.tolist() == [5] + [1] * 99
    # 0.3: class 1 has sqrt(1.2), rounded up, and class 2 sqrt(30).
    assert repeat_factors(images, 100, 0.3).tolist() == [6] + [2] * 24 + [1] * 75


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_repeated_images_in_batches_of_one_orientation(ranks: int) -> None:
    is_wide = np.array([True, False] * 3)
    repeats = np.array([3, 1, 1, 2, 1, 1])
    seen: Counter[int] = Counter()
    for rank in range(ranks):
        sampler = AspectRatioSampler(range(6), is_wide, 1, ranks, rank, repeats=repeats)
        order = list(sampler)
        assert len(order) == len(sampler)
        seen.update(order)
    assert all(seen[i] >= repeats[i] for i in range(6))
    assert seen.total() <= 9 + 2 * (ranks - 1)  # at most padded to whole steps per orientation
