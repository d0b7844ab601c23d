from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from src.cli import main
from src.data.samplers.balanced import BalancedBatchSampler

LABELS = np.array([0] * 40 + [1] * 6 + [2] * 2)


def drawn(epoch: int, ranks: int = 1, batch_size: int = 12) -> list[int]:
    """Indices of an epoch, in the order of the steps."""
    batches = []
    for rank in range(ranks):
        sampler = BalancedBatchSampler(LABELS, LABELS, batch_size, ranks, rank, seed=3)
        sampler.set_epoch(epoch)
        batches.append(torch.tensor(list(sampler)).view(-1, batch_size))
    return torch.stack(batches, dim=1).flatten().tolist()


def test_all_classes_are_drawn_equally_often() -> None:
    indices = np.array(drawn(0))
    assert len(indices) == 48
    assert np.bincount(LABELS[indices]).tolist() == [16, 16, 16]
    times = np.bincount(indices, minlength=48)
    assert set(times[:40]) == {0, 1}
    assert set(times[40:46]) == {2, 3}
    assert set(times[46:]) == {8}


def test_the_order_depends_on_the_epoch_and_not_on_the_number_of_ranks() -> None:
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(1) == drawn(1, ranks=2, batch_size=6) == drawn(1, ranks=4, batch_size=3)


def test_a_resumed_run_continues_with_the_same_images(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    fit = ["fit", "-c", "tiny.yaml", "--data.class_balanced", "true", "--model.lr_scheduler=null"]
    assert main(fit) == 0
    assert main([*fit, "--trainer.max_epochs", "1", "--name", "half"]) == 0
    assert main([*fit, "--name", "half", "--ckpt_path", "last"]) == 0
    paths = ("runs/tiny/version_0", "runs/half/version_1")
    whole, rest = (
        torch.load(f"{path}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for path in paths
    )
    assert all(torch.equal(value, rest[name]) for name, value in whole.items())
