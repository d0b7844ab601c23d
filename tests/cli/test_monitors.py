"""Metrics that callbacks and schedules monitor."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main

EARLY_STOPPING = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor")
PLATEAU = ("--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau")
OURS = "lightning.pytorch.cli.ReduceLROnPlateau"
LIGHTNING_PLATEAU = ("--model.lr_scheduler", OURS, "--model.lr_scheduler.monitor")


@pytest.fixture
def fit(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the recipe."""
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *flags: main(["fit", "-c", "tiny.yaml", *flags])


@pytest.mark.parametrize(
    ("flags", "owner"),
    [
        (("--checkpoint.monitor", "val_top1"), "checkpoint.monitor"),
        ((*EARLY_STOPPING, "val_top1"), "EarlyStopping.monitor"),
        ((*LIGHTNING_PLATEAU, "val_top1"), "ReduceLROnPlateau.monitor"),
    ],
)
def test_an_unknown_metric_is_refused_before_training(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], flags: tuple[str], owner: str
) -> None:
    assert fit(*flags) == 2
    error = capsys.readouterr().err
    assert f"{owner} is 'val_top1', which this run does not log." in error
    assert "Did you mean 'val/top1'? Logged metrics are val/loss, val/top1." in error
    assert not Path("runs").exists()


def test_an_unknown_metric_is_refused_after_validation(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    own = "--trainer.callbacks+=tests.cli.crash.KillAt"  # may log anything
    flags = [own, "--trainer.callbacks.step", "1000", "--trainer.check_val_every_n_epoch", "2"]
    assert fit(*flags, *EARLY_STOPPING, "accuracy", "--trainer.max_epochs", "4") == 2
    error = capsys.readouterr().err
    assert "EarlyStopping.monitor is 'accuracy', which this run does not log." in error
    assert "train/loss" in error


def test_an_unknown_loss_of_training_is_refused_after_an_epoch(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--checkpoint.monitor", "train/los") == 2
    assert "Did you mean 'train/loss'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train/loss_epoch", "train/loss", "val/loss_raw"])
def test_logged_metrics_are_accepted(fit: Callable[..., int], name: str) -> None:
    mode = "max" if "top" in name else "min"
    assert fit("--checkpoint.monitor", name, "--checkpoint.mode", mode) == 0
    assert list(Path("runs/tiny/version_0/checkpoints").glob("best*"))


def test_warning_about_a_wrong_mode(fit: Callable[..., int]) -> None:
    with pytest.warns(UserWarning, match=r"EarlyStopping monitors the minimum of val/top1"):
        assert fit(*EARLY_STOPPING, "val/top1", "--trainer.max_epochs", "1") == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*monitors the")
        flags = (*EARLY_STOPPING, "val/loss", "--trainer.max_epochs", "1")
        assert fit(*flags, "--checkpoint.monitor", "val/loss", "--checkpoint.mode", "min") == 0


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("scheduler", [PLATEAU, (*LIGHTNING_PLATEAU, "val/loss")])
def test_plateaus(fit: Callable[..., int], scheduler: tuple[str, ...], interval: str) -> None:
    """An unreachable threshold halves the rate after every validation except the first."""
    flags = ["--model.lr_scheduler.factor", "0.5", "--model.lr_scheduler.patience", "0"]
    flags += ["--model.lr_scheduler.threshold", "1e6", "--model.lr_scheduler.mode", "min"]
    flags += ["--model.lr_scheduler.threshold_mode", "abs", "--trainer.max_epochs", "4"]
    flags += ["--trainer.check_val_every_n_epoch", "2", "--model.lr_interval", interval]
    assert fit(*scheduler, *flags) == 0
    import torch

    content = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert content["lr_schedulers"][0]["last_epoch"] >= 1
