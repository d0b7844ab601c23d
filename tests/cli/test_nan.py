"""Diverging runs stop with a one-line error and keep the checkpoints written before."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from src.cli import main
from src.files import write_json
from src.tasks import ClassificationTask

GO_ON = ("--terminate_on_nan.enabled", "false")


def break_loss(monkeypatch: pytest.MonkeyPatch, batch: int, value: float) -> None:
    """Multiply the loss of one batch, counted from the start of training, by NaN or infinity."""
    original, count = ClassificationTask.training_step, iter(range(1000))

    def training_step(task: ClassificationTask, *arguments: Any) -> Tensor:
        loss = original(task, *arguments)
        return loss * value if next(count) == batch else loss

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


def fit(*arguments: str) -> int:
    return main(["fit", "-c", "tiny.yaml", *arguments])


def weights(name: str) -> dict[str, Tensor]:
    path = Path("runs/tiny/version_0/checkpoints") / name
    content = torch.load(path, weights_only=True)
    return content["state_dict"] | content["current_model_state"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_non_finite_loss_stops_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    break_loss(monkeypatch, 4, value)
    assert fit("--trainer.max_epochs", "4") == 2
    error = capsys.readouterr().err
    assert "The loss is not finite at step 4 of epoch 1: loss" in error
    assert "model.optimizer.lr" in error
    assert "--terminate_on_nan.enabled false" in error
    assert {path.name for path in Path("runs/tiny/version_0/checkpoints").iterdir()} == {
        "best-epoch=0.ckpt",
        "last.ckpt",
    }
    assert all(torch.isfinite(value).all() for value in weights("last.ckpt").values())
    assert fit("--trainer.max_epochs", "2", "--ckpt_path", "last") == 0


def test_a_non_finite_loss_while_accumulating_stops_before_the_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_loss(monkeypatch, 0, float("nan"))
    assert fit("--trainer.accumulate_grad_batches", "2") == 2
    assert "not finite at step 0 of epoch 0: loss nan" in capsys.readouterr().err


def test_training_can_continue_without_a_best_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_loss(monkeypatch, 4, float("nan"))
    with pytest.warns(UserWarning, match="Weights are NaN or infinite"):
        assert fit("--trainer.max_epochs", "3", *GO_ON) == 0
    names = {path.name for path in Path("runs/tiny/version_0/checkpoints").iterdir()}
    assert names == {"best-epoch=0.ckpt", "last.ckpt"}
    Image.new("RGB", (40, 40)).save("grey.png")
    predict = ("predict", "--data.predict_dir", "grey.png")
    for command, *images in (("validate",), ("test",), predict):
        arguments = [command, "-c", "tiny.yaml", "--ckpt_path", "last", *images]
        assert main(arguments) == 2
        assert "last.ckpt has NaN or infinite values" in capsys.readouterr().err


def test_non_finite_weights_of_the_last_step_are_not_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is finite, but its gradients are not."""
    original = torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW, *arguments: Any, **keywords: Any) -> Any:
        result = original(optimizer, *arguments, **keywords)
        is_of_network = (
            len(optimizer.param_groups) > 1
        )  # skip optimizers that test settings on a single weight
        if is_of_network and next(count) == 5:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(float("nan"))
        return result

    count = iter(range(1000))
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert fit("--trainer.max_epochs", "2") == 2
    assert "are NaN or infinite (first: patch_embed.conv1.weight)" in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in weights("last.ckpt").values())


def test_a_non_finite_validation_loss_stops_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = ClassificationTask._full_logits
    monkeypatch.setattr(
        ClassificationTask, "_full_logits", lambda *arguments: original(*arguments) * float("nan")
    )
    assert fit() == 2
    assert "val/loss nan" in capsys.readouterr().err
    assert not list(Path("runs/tiny/version_0").rglob("best*"))


def test_infinite_gradients_with_a_grad_scaler_are_accepted(
    folder: Path, write_recipe: Callable[..., Path], recipe: dict[str, Any]
) -> None:
    """With a scale of 1e30, the gradients of the first steps overflow and the scaler skips them."""
    scaler = {
        "class_path": "torch.amp.GradScaler",
        "init_args": {"device": "cpu", "init_scale": 1e30},
    }
    plugin = {
        "class_path": "lightning.pytorch.plugins.MixedPrecision",
        "init_args": {"precision": "16-mixed", "device": "cpu", "scaler": scaler},
    }
    write_recipe(folder, trainer=recipe["trainer"] | {"plugins": [plugin]})
    assert fit("--trainer.max_epochs", "2") == 0
    content = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert content["MixedPrecision"]["scale"] < 1e30


@pytest.mark.slow
def test_all_ranks_stop_together(folder: Path) -> None:
    callback = "--trainer.callbacks+=tests.cli.crash.NaNOnRank"
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4"]
    flags = [callback, "--trainer.callbacks.rank", "1", "--trainer.callbacks.step", "4"]
    flags += ["--trainer.default_root_dir", str(folder / "runs")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "src", "fit", "-c", str(folder / "tiny.yaml"), *ranks, *flags],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "on rank 1" in done.stderr
    assert (folder / "runs/tiny/version_0/checkpoints/last.ckpt").exists()


def test_result_files_are_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"score": float("nan")}, allow_nan=False)
    assert not list(tmp_path.iterdir())
    write_json(path, {"score": 1.0}, allow_nan=False)
    assert json.loads(path.read_text()) == {"score": 1.0}
