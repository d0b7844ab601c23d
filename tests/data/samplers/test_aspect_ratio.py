"""Batches of one orientation, shared among processes."""

import numpy as np

from src.data.samplers.aspect_ratio import AspectRatioSampler

IS_WIDE = np.array([True] * 7 + [False] * 4)


def batches(sampler, size):
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def test_every_batch_has_one_orientation_and_every_image_comes():
    sampler = AspectRatioSampler(range(11), IS_WIDE, batch_size=2)
    seen = batches(sampler, 2)
    assert len(seen) == 4 + 2
    assert all(len({bool(IS_WIDE[i]) for i in batch}) == 1 for batch in seen)
    assert {i for batch in seen for i in batch} == set(range(11))


def test_order_depends_on_the_epoch_only():
    sampler = AspectRatioSampler(range(11), IS_WIDE, batch_size=2)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_processes_share_the_batches():
    shares = [
        batches(AspectRatioSampler(range(11), IS_WIDE, 2, num_replicas=2, rank=rank), 2)
        for rank in range(2)
    ]
    assert len(shares[0]) == len(shares[1]) == 2 + 1
    together = [i for share in shares for batch in share for i in batch]
    assert set(together) == set(range(11))


def test_one_orientation_smaller_than_a_batch_is_repeated():
    sampler = AspectRatioSampler(range(3), np.array([True, False, False]), batch_size=4)
    assert sorted(map(sorted, batches(sampler, 4))) == [[0, 0, 0, 0], [1, 1, 2, 2]]


def test_repeated_images_are_counted():
    assert AspectRatioSampler(range(11), IS_WIDE, batch_size=2).repeated == 1
    assert AspectRatioSampler(range(11), IS_WIDE, batch_size=2, num_replicas=2).repeated == 1
    assert AspectRatioSampler(range(11), IS_WIDE, batch_size=4).repeated == 1
    assert AspectRatioSampler(range(11), IS_WIDE, batch_size=3).repeated == 2 + 2
    assert AspectRatioSampler(range(11), IS_WIDE, batch_size=3).is_mixed
    assert not AspectRatioSampler(range(11), np.ones(11, bool), batch_size=3).is_mixed
