import pytest

from src.data.samplers.distributed import CountOnceSampler, DistributedBatchSampler


def deal(length: int, batch_size: int, processes: int, epoch: int = 0) -> list[list[list[int]]]:
    """Batches by step and process."""
    samplers = [
        DistributedBatchSampler(range(length), batch_size, processes, rank)
        for rank in range(processes)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    orders = [list(sampler) for sampler in samplers]
    assert {len(order) for order in orders} == {len(sampler) for sampler in samplers}
    size = samplers[0].batch_size
    steps = range(0, len(orders[0]), size)
    return [[order[start : start + size] for order in orders] for start in steps]


@pytest.mark.parametrize("processes", [2, 4])
def test_a_step_has_the_same_images_on_any_number_of_processes(processes: int) -> None:
    alone = deal(50, 12, 1)
    for one, many in zip(alone, deal(50, 12 // processes, processes), strict=True):
        assert one[0] == [index for batch in many for index in batch]


def test_accumulated_batches_are_those_of_the_processes() -> None:
    accumulated = [batch for step in deal(24, 4, 1) for batch in step]
    assert accumulated == [batch for step in deal(24, 4, 3) for batch in step]


def test_every_image_comes_once_and_the_rest_of_a_step_is_left_out() -> None:
    seen = [index for step in deal(50, 4, 3) for batch in step for index in batch]
    assert len(seen) == len(set(seen)) == 48
    assert DistributedBatchSampler(range(50), 4, 3).left_out == 2
    assert DistributedBatchSampler(range(5), 8, 2).left_out == 0
    assert deal(50, 4, 3, epoch=1) != deal(50, 4, 3) == deal(50, 4, 3)


def test_a_data_set_smaller_than_a_step_is_one_step() -> None:
    (step,) = deal(5, 8, 2)
    assert [len(batch) for batch in step] == [3, 3]  # one image twice
    assert {index for batch in step for index in batch} == set(range(5))


@pytest.mark.parametrize("length", [1, 7, 12, 13])
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_evaluation_deals_the_batches_of_one_rank(length: int, processes: int) -> None:
    def batches(rank: int, ranks: int) -> list[list[int]]:
        order = list(CountOnceSampler(range(length), 3, ranks, rank))
        return [order[start : start + 3] for start in range(0, len(order), 3)]

    of_ranks = [batches(rank, processes) for rank in range(processes)]
    assert len({len(of_rank) for of_rank in of_ranks}) == 1
    together = [batch for step in zip(*of_ranks, strict=True) for batch in step]
    assert [batch for batch in together if batch != [length]] == batches(0, 1)
