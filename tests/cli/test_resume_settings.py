"""Resuming with other settings: new settings are used, or incompatible ones are errors.

An epoch has three batches; the checkpoint is from the end of the second epoch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.cli import main
from src.tasks import ClassificationTask

SCALE = 8 / 512  # global batch size / reference batch size
STEP_LR = ("--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR")
STEP_LR_SETTINGS = ("--model.lr_scheduler.step_size", "1", "--model.lr_scheduler.gamma")
PLATEAU = ("--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau")
STUBBORN = (
    *PLATEAU,
    *("--model.lr_scheduler.factor", "0.5", "--model.lr_scheduler.patience", "0"),
    *("--model.lr_scheduler.min_lr", "0"),  # not that of the schedule in the recipe
    *("--model.lr_scheduler.threshold", "1e6", "--model.lr_scheduler.threshold_mode", "abs"),
)


@pytest.fixture
def fit(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the recipe."""
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *flags: main(["fit", "-c", "tiny.yaml", *flags])


@pytest.fixture
def resume(fit: Callable[..., int], trained: Path) -> Callable[..., int]:
    """Resume the trained run for one more epoch with further flags."""
    checkpoint = str(trained / "runs/tiny/version_0/checkpoints/last.ckpt")
    flags = ["--trainer.max_epochs", "3", "--ckpt_path", checkpoint]
    return lambda *more: fit(*flags, *more)


def last(name: str = "tiny", version: int = 0) -> dict[str, Any]:
    path = f"runs/{name}/version_{version}/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)


def groups(name: str = "tiny", version: int = 0) -> list[dict[str, Any]]:
    return last(name, version)["optimizer_states"][0]["param_groups"]


def test_another_schedule_continues_at_the_current_epoch(
    resume: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*STEP_LR, *STEP_LR_SETTINGS, "0.5", "--model.optimizer.lr", "0.4")
    assert resume(*flags, "--model.lr_interval", "epoch") == 0
    assert [group["lr"] for group in groups()] == pytest.approx([0.4 * SCALE * 0.5**3] * 2)
    said = capsys.readouterr()
    assert "lr_scheduler WarmupCosine -> StepLR" in said.out + said.err
    again = ("--name", "again", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt")
    flags = (*STEP_LR, *STEP_LR_SETTINGS, "0.1", "--model.optimizer.lr", "0.2")
    assert resume(*flags, *again, "--trainer.max_epochs", "4") == 0
    assert [group["lr"] for group in groups("again")] == pytest.approx([0.2 * SCALE * 0.1**4] * 2)


def test_back_to_a_schedule_of_steps(fit: Callable[..., int]) -> None:
    assert fit(*STEP_LR, *STEP_LR_SETTINGS, "0.5", "--trainer.max_epochs", "1") == 0
    assert fit("--ckpt_path", "last") == 0
    assert fit("--name", "straight") == 0
    assert last(version=1)["lr_schedulers"] == last("straight")["lr_schedulers"]
    assert groups(version=1) == groups("straight")


def test_no_schedule_and_other_optimizer_settings(
    resume: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"betas": "[0.8,0.9]", "weight_decay": "0.3", "fused": "true", "eps": "1e-6"}
    flags = [f"--model.optimizer.{name}={value}" for name, value in settings.items()]
    assert resume("--model.lr_scheduler", "null", *flags) == 0
    decay, no_decay = groups()
    assert decay["lr"] == no_decay["lr"] == 0.05 * SCALE
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.3, 0.0)
    assert (list(decay["betas"]), decay["eps"], decay["fused"]) == ([0.8, 0.9], 1e-6, True)
    said = capsys.readouterr()
    assert "Changed since the checkpoint: " in said.out + said.err
    assert "weight_decay 0.05 -> 0.3" in said.out + said.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.optimizer", "torch.optim.SGD"], "with the optimizer AdamW, the settings have"),
        (["--model.optimizer.amsgrad", "true"], "it has no 'max_exp_avg_sq'"),
        (["--model.layer_decay", "0.9"], "groups the parameters for the optimizer"),
        (
            [
                *("--model.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR"),
                *("--model.lr_scheduler.max_lr", "0.1", "--model.lr_scheduler.total_steps", "4"),
                *("--model.lr_interval", "step"),
            ],
            "The schedule OneCycleLR cannot be resumed at step 6",
        ),
    ],
)
def test_incompatible_settings_are_errors(
    resume: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert resume(*flags) == 2
    assert message in capsys.readouterr().err


def test_an_older_checkpoint_of_another_optimizer(
    fit: Callable[..., int], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older checkpoints do not name their optimizer; it is recognised by its state."""
    content = torch.load(trained / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    del content["optimization"]
    torch.save(content, "old.ckpt")
    flags = ("--ckpt_path", "old.ckpt", "--trainer.max_epochs", "3")
    assert fit(*flags, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1") == 2
    error = capsys.readouterr().err
    assert (
        "The optimizer state in the checkpoint is not compatible with the current optimizer"
        in error
    )
    assert fit(*flags) == 0


def test_smaller_batches_continue_at_the_same_part_of_the_schedule(
    resume: Callable[..., int],
) -> None:
    """Two epochs of six batches are twelve steps; the checkpoint was written after six steps."""
    assert resume("--data.batch_size", "4") == 0
    (schedule,) = last()["lr_schedulers"]
    assert schedule["last_epoch"] == 18
    assert groups()[0]["lr"] == pytest.approx(0.001 * 4 / 512)  # the end of the schedule


def test_reduce_lr_on_plateau_resumes(fit: Callable[..., int]) -> None:
    """The rate is halved after every epoch except the first."""
    assert fit(*STUBBORN, "--trainer.max_epochs", "4", "--name", "straight") == 0
    assert fit(*STUBBORN, "--trainer.max_epochs", "2") == 0
    assert fit(*STUBBORN, "--trainer.max_epochs", "4", "--ckpt_path", "last") == 0
    assert groups(version=1) == groups("straight")
    assert groups("straight")[0]["lr"] == 0.05 * SCALE / 4  # three epochs were monitored
    assert last(version=1)["lr_schedulers"] == last("straight")["lr_schedulers"]


def test_early_stopping_patience_comes_from_the_configuration(
    fit: Callable[..., int],
) -> None:
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/top1"]
    stop += ["--trainer.callbacks.min_delta", "1"]  # never improves after the first epoch
    stop += ["--trainer.callbacks.mode", "max", "--trainer.callbacks.patience"]
    assert fit(*stop, "10", "--trainer.max_epochs", "1") == 0
    assert fit(*stop, "2", "--trainer.max_epochs", "9", "--ckpt_path", "last") == 0
    assert last(version=1)["epoch"] == 2


def test_an_interruption_between_two_steps_repeats_the_accumulated_batches(
    fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has a step of two batches and a step of the remaining one."""
    flags = ("--trainer.accumulate_grad_batches", "2")
    assert fit(*flags, "--name", "straight") == 0
    original = ClassificationTask.training_step

    def training_step(task: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        if (task.trainer.current_epoch, batch_idx) == (1, 1):
            monkeypatch.setattr(ClassificationTask, "training_step", original)
            raise RuntimeError("test error")
        return original(task, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)
    assert fit(*flags) == 1
    assert fit(*flags, "--ckpt_path", "last") == 0
    ours, expected = last(version=1), last("straight")
    assert ours["global_step"] == expected["global_step"] == 4
    for part in ("state_dict", "current_model_state"):
        for name, value in expected[part].items():
            assert torch.equal(ours[part][name], value), (part, name)
    states = (content["optimizer_states"][0]["state"] for content in (ours, expected))
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
