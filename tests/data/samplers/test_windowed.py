"""The order of image-text pairs depends on (seed, epoch, position) only."""

import numpy as np
import pytest

from src.data.samplers.permutation import key_of, permutation
from src.data.samplers.windowed import SourceOrder, WindowedOrder, WindowedSampler, shares
from src.errors import UserError

SIZES = np.random.default_rng(0).integers(0, 50, 40)


def order(*weights: float, window: int = 8) -> WindowedOrder:
    parts = (SIZES, SIZES[:7], SIZES[20:24])
    pairs = zip(parts, weights, strict=False)
    return WindowedOrder([SourceOrder(sizes, weight) for sizes, weight in pairs], 3, window)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 999, 10_007])
def test_every_element_occurs_once(size: int) -> None:
    assert np.array_equal(np.sort(permutation(size, key_of(1, size))), np.arange(size))


def test_keys_give_different_permutations() -> None:
    first, second = permutation(1000, key_of(1)), permutation(1000, key_of(2))
    assert (first == second).mean() < 0.02
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(10, 1).tolist() == [6, 0, 5, 8, 4, 9, 3, 2, 7, 1]


def test_shares_grow_evenly() -> None:
    sizes = [50, 0, 7, 13]
    counts = np.array([shares(position, sizes) for position in range(71)])
    assert (counts.sum(1) == np.arange(71)).all()
    assert (np.diff(counts, axis=0) >= 0).all()
    assert counts[-1].tolist() == sizes
    assert np.abs(counts - np.arange(71)[:, None] * np.array(sizes) / 70).max() < 2


@pytest.mark.parametrize("window", [1, 8, 1000])
def test_an_epoch_has_every_sample_once(window: int) -> None:
    drawn = order(1.0, 1.0, window=window)
    starts = range(0, len(drawn), 64)
    ids = np.concatenate([drawn.draw(0, s, min(s + 64, len(drawn))).ids for s in starts])
    assert np.array_equal(np.sort(ids), np.arange(sum(drawn.totals)))


def test_weights_repeat_or_halve_a_source() -> None:
    drawn = order(0.5, 2.0)
    first = drawn.totals[0]
    epochs = [drawn.draw(epoch, 0, len(drawn)).ids for epoch in (0, 1)]
    halves = np.concatenate([ids[ids < first] for ids in epochs])
    assert len(np.unique(halves)) == min(len(halves), first)  # two different halves
    assert abs(len(halves) - first) <= 1
    assert (np.bincount(epochs[0][epochs[0] >= first] - first) == 2).all()


def test_every_step_mixes_the_sources_by_their_sizes() -> None:
    drawn = order(1.0, 1.0)
    expected = 100 * drawn.totals[0] / len(drawn)
    for start in range(0, len(drawn) - 100, 100):
        count = (drawn.draw(0, start, start + 100).ids < drawn.totals[0]).sum()
        assert abs(count - expected) <= 1


def test_epochs_and_seeds_differ() -> None:
    drawn = order(1.0)
    first, second = (drawn.draw(epoch, 0, 100) for epoch in (0, 1))
    assert not np.array_equal(first.ids, second.ids)
    assert not set(first.seeds.tolist()) & set(second.seeds.tolist())


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_steps_are_the_same_on_any_number_of_ranks(ranks: int) -> None:
    drawn = order(1.0, 1.0, 1.0)
    dataset = range(sum(drawn.totals))
    parts = []
    for rank in range(ranks):
        sampler = WindowedSampler(dataset, drawn, 12 // ranks, ranks, rank)
        sampler.set_epoch(1)
        parts.append(np.array(list(sampler), np.uint64).reshape(-1, 12 // ranks, 2))
        assert len(sampler) == parts[-1].size // 2
    together = np.concatenate(parts, axis=1)
    expected = [drawn.draw(1, start, start + 12) for start in range(0, len(drawn) - 11, 12)]
    assert np.array_equal(together[..., 0], [step.ids for step in expected])
    assert np.array_equal(together[..., 1], [step.seeds for step in expected])


def test_a_rank_reads_its_own_tars_of_a_window() -> None:
    drawn = WindowedOrder([SourceOrder(np.full(32, 100))], 0, window=16)
    sampler = WindowedSampler(range(3200), drawn, 16, num_replicas=4, rank=2)
    in_window = [index // 100 for index, _ in sampler][: 1600 // 4]
    assert len(set(in_window)) <= 16 / 4 + 1


def test_a_resumed_epoch_begins_after_the_skipped_steps() -> None:
    drawn = order(1.0, 1.0)
    sampler = WindowedSampler(range(sum(drawn.totals)), drawn, 10)
    whole = list(sampler)
    sampler.skip_steps(7)
    sampler.set_epoch(0)
    assert list(sampler) == whole[70:]
    sampler.set_epoch(1)
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_an_epoch_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="fewer than one step of 4000"):
        WindowedSampler(range(10), order(1.0), 4000)
