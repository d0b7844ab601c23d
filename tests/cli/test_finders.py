"""Lightning's finders in the three tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.cli import main
from tests.cli.tiny import TASKS, write_data, write_recipe

NAME, KIND = "--trainer.callbacks.", "--trainer.callbacks+="


@pytest.fixture(params=TASKS)
def recipe(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recipe with eight images, batches of two and four epochs, without a schedule."""
    monkeypatch.chdir(tmp_path)
    config = write_recipe(tmp_path, request.param, write_data(tmp_path, request.param, count=8))
    content = yaml.safe_load(config.read_text())
    content["trainer"]["max_epochs"] = 4
    content["model"]["init_args"]["lr_scheduler"] = None
    config.write_text(yaml.safe_dump(content))
    return config


def last(recipe: Path) -> dict[str, Any]:
    path = f"runs/{recipe.stem}/version_0/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)


def lr_of(recipe: Path) -> tuple[float, int]:
    """Learning rate of the recipe and the batch size that it is for."""
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]
    return settings["optimizer"]["init_args"]["lr"], settings["reference_batch_size"]


@pytest.mark.slow
def test_batch_size_finder(recipe: Path) -> None:
    flags = (f"{KIND}BatchSizeFinder", f"{NAME}max_val", "4", f"{NAME}steps_per_trial", "1")
    assert main(["fit", "-c", str(recipe), *flags]) == 0
    checkpoint = last(recipe)
    assert checkpoint["global_step"] == 4 * 8 // 4  # four epochs with batches of four
    base, reference = lr_of(recipe)
    assert checkpoint["optimization"]["lr"] == pytest.approx(
        [base * 4 / reference] * len(checkpoint["optimization"]["lr"])
    )


@pytest.mark.slow
def test_learning_rate_finder(recipe: Path) -> None:
    flags = (f"{KIND}LearningRateFinder", f"{NAME}num_training_steps", "16")
    flags += (f"{NAME}max_lr", "0.01")
    assert main(["fit", "-c", str(recipe), *flags]) == 0
    checkpoint = last(recipe)
    assert checkpoint["global_step"] == 4 * 8 // 2  # training started from the first step
    base, reference = lr_of(recipe)
    (rate,) = set(checkpoint["optimization"]["lr"])
    assert 0 < rate <= 0.01
    assert rate != base * 2 / reference


@pytest.mark.parametrize(("steps", "epochs"), [("100", "2"), ("12", "9")])
def test_a_run_that_is_too_short_for_the_learning_rate_finder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: str,
    epochs: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path, "classification", count=8)
    config = write_recipe(tmp_path, "classification", data)
    flags = (f"{KIND}LearningRateFinder", f"{NAME}num_training_steps", steps)
    assert main(["fit", "-c", str(config), *flags, "--trainer.max_epochs", epochs]) == 2
    error = capsys.readouterr().err
    run = 8 // 2 * int(epochs)
    assert f"tries {steps} learning rates (num_training_steps), one per step, and the run" in error
    assert f"has {run} steps. Set num_training_steps to at least 13" in error
    assert "not enough points" not in error  # the message of Lightning
    assert not Path("runs").exists()
