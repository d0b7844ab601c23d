"""Two ranks have the same losses as one rank with the same global batch, in all tasks."""

from pathlib import Path

import pytest

from tests.distributed.conftest import TASKS, Launcher

STEPS = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "20")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_ddp_and_fsdp2_have_the_losses_of_one_rank(
    task: str, launch: Launcher, tmp_path: Path
) -> None:
    alone = launch(tmp_path, task, *STEPS, "--trainer.accumulate_grad_batches", "2").losses
    assert sorted(alone) == list(range(1, 21))
    assert alone[20] < alone[1]
    for strategy in ("ddp", "fsdp2"):
        two = launch(tmp_path, task, *STEPS, "--trainer.strategy", strategy, ranks=2)
        assert two.losses == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_frozen_backbone_has_the_same_losses_too(
    task: str, launch: Launcher, tmp_path: Path
) -> None:
    steps = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "4")
    flags = (*steps, "--model.freeze", "backbone")
    alone = launch(tmp_path, task, *flags, "--trainer.accumulate_grad_batches", "2").losses
    for strategy in ("ddp", "fsdp2"):
        two = launch(tmp_path, task, *flags, "--trainer.strategy", strategy, ranks=2)
        assert two.losses == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_low_rank_updates_have_the_same_losses_too(launch: Launcher, tmp_path: Path) -> None:
    flags = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "4", "--model.lora", "2")
    one = launch(tmp_path, "segmentation", *flags, "--trainer.accumulate_grad_batches", "2")
    two = launch(tmp_path, "segmentation", *flags, "--trainer.strategy", "ddp", ranks=2)
    assert two.losses == pytest.approx(one.losses, abs=1e-5)


@pytest.mark.slow
def test_a_contrastive_loss_compares_the_pairs_of_all_ranks(
    launch: Launcher, tmp_path: Path
) -> None:
    flags = (*STEPS, "--model.optimizer.lr", "1e-3")
    alone = launch(tmp_path, "pairs", *flags, "--data.batch_size", "8").losses
    assert alone[20] < alone[1]
    for strategy in ("ddp", "fsdp2"):
        two = launch(tmp_path, "pairs", *flags, "--trainer.strategy", strategy, ranks=2)
        assert two.losses[1] == pytest.approx(alone[1], rel=1e-6)
        # The logits are similarities times 14, so later steps amplify rounding more.
        assert two.losses == pytest.approx(alone, rel=1e-4)
