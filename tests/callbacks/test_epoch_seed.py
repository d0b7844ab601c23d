"""Resuming within an epoch: what is printed."""

from src.callbacks.epoch_seed import skipping


def test_the_batches_that_a_resumed_epoch_skips_are_counted() -> None:
    assert skipping(1, 3) == "Skipping the batch of epoch 3 that was already used"
    assert skipping(2, 3) == "Skipping the 2 batches of epoch 3 that were already used"
