"""Callbacks and loggers of Lightning on the command line."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.cli import main

NAME = "--trainer.callbacks."
KIND = "--trainer.callbacks+="


@pytest.fixture
def fit(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run an epoch of the recipe."""
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *flags: main(["fit", "-c", "tiny.yaml", "--trainer.max_epochs", "1", *flags])


def optimization() -> dict[str, Any]:
    path = "runs/tiny/version_0/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["optimization"]


def test_batch_size_finder_scales_the_learning_rate(fit: Callable[..., int]) -> None:
    assert fit(f"{KIND}BatchSizeFinder", f"{NAME}max_val", "4") == 0
    assert optimization()["lr"] == [0.05 * 4 / 512] * 2


def test_learning_rate_finder_sets_the_learning_rate(fit: Callable[..., int]) -> None:
    # The finder discards the first ten steps and stops at the end of training, step 24.
    steps = (f"{NAME}num_training_steps", "24", f"{NAME}max_lr", "0.1", "--trainer.max_epochs", "8")
    assert fit(f"{KIND}LearningRateFinder", *steps, "--model.layer_decay", "0.5") == 0
    rates = optimization()["lr"]
    assert rates[0] != 0.05 * 8 / 512
    assert min(rates) == pytest.approx(max(rates) / 8)  # four blocks


@pytest.mark.parametrize(
    ("flags", "instead"),
    [
        (("StochasticWeightAveraging", f"{NAME}swa_lrs", "0.1"), "use the EMA callback"),
        (("BackboneFinetuning",), "use model.freeze, or layer_decay"),
    ],
)
def test_unsupported_callbacks_are_refused(
    fit: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    instead: str,
) -> None:
    assert fit(f"{KIND}{flags[0]}", *flags[1:]) == 2
    assert instead in capsys.readouterr().err


def test_enum_defaults_are_saved_as_strings(fit: Callable[..., int]) -> None:
    assert fit(f"{KIND}Timer", f"{NAME}duration", "00:01:00:00") == 0
    settings = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    (timer,) = (c for c in settings["trainer"]["callbacks"] if c["class_path"].endswith("Timer"))
    assert timer["init_args"]["interval"] == "step"


@pytest.mark.parametrize(
    ("logger", "package"),
    [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow"), ("CometLogger", "comet-ml")],
)
def test_a_logger_without_its_package(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], logger: str, package: str
) -> None:
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    for flag in ("--trainer.logger", "--trainer.logger+"):
        assert fit(flag, logger) == 2
        assert f"pip install {package}\n" in capsys.readouterr().err
    assert not Path("runs").exists()
