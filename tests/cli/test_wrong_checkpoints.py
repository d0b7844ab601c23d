"""Checkpoints and weights that cannot be used are answered in one line."""

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.cli import main


@pytest.mark.parametrize(
    ("option", "given", "finished"),
    [("epochs", 0, "2 epochs"), ("epochs", 2, "2 epochs"), ("steps", 6, "6 steps")],
)
def test_a_checkpoint_that_has_finished(
    folder: Path,
    trained: Path,
    error_of: Callable[..., str],
    option: str,
    given: int,
    finished: str,
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"  # of two epochs
    flags = ["--ckpt_path", str(checkpoint), "--trainer.max_epochs", "3"]
    text = error_of("fit", "-c", "tiny.yaml", *flags, f"--trainer.max_{option}", str(given))
    assert text == (
        f"Nothing is left to train: {checkpoint} has finished {finished}; trainer.max_{option}"
        f" must be larger, and it is {given}."
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_checkpoints(
    folder: Path, trained: Path, error_of: Callable[..., str], damage: str
) -> None:
    whole = (trained / "runs/tiny/version_0/checkpoints/last.ckpt").read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage]
    Path("bad.ckpt").write_bytes(content)
    text = error_of("fit", "-c", "tiny.yaml", "--ckpt_path", "bad.ckpt")
    size = len(content)
    assert text.startswith(
        f"The checkpoint bad.ckpt ({size:,} bytes) cannot be read: it is damaged"
    )


def test_weights_that_are_not_finite(
    folder: Path, trained: Path, error_of: Callable[..., str]
) -> None:
    content = torch.load(trained / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    for state in (content["state_dict"], content["current_model_state"]):
        state["network.patch_embed.conv1.weight"].fill_(float("nan"))
    torch.save(content, "nan.ckpt")
    text = error_of("fit", "-c", "tiny.yaml", "--model.weights", "nan.ckpt")
    assert "NaN or infinite values, first in" in text
    flags = ["--trainer.max_epochs", "3", "--ckpt_path", "nan.ckpt"]
    assert "NaN or infinite values" in error_of("fit", "-c", "tiny.yaml", *flags)


def test_weights_are_not_a_checkpoint(folder: Path, error_of: Callable[..., str]) -> None:
    torch.save({"model": {}}, "official.pth")
    text = error_of("fit", "-c", "tiny.yaml", "--ckpt_path", "official.pth")
    assert "official.pth is not a checkpoint of a training run" in text
    assert "--model.weights official.pth" in text


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_checkpoint_of_another_variant(
    folder: Path, trained: Path, error_of: Callable[..., str], command: str
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    flags = ["--model.network.channels", "16", "--ckpt_path", str(checkpoint)]
    text = error_of(command, "-c", "tiny.yaml", *flags)
    assert text.startswith("The checkpoint does not match this network:")
    # The first filter of the stem has half as many channels as the network.
    assert "expected (8, 3, 3, 3), got (4, 3, 3, 3)" in text


def test_checkpoint_of_another_number_of_classes(
    folder: Path, trained: Path, error_of: Callable[..., str]
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    flags = ["--ckpt_path", str(checkpoint), "--data.class_names", "[blue,green,red,violet]"]
    text = error_of("validate", "-c", "tiny.yaml", *flags)
    classes = "it has 3 classes (blue, green, red), but the data have 4 (blue, green, red, violet)."
    assert text.startswith(f"The checkpoint does not match this network: {classes}")
    assert "Use the config.yaml and the data of the run" in text


def test_weights_that_fit_are_reported(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    flags = ["fit", "-c", "tiny.yaml", "--trainer.max_steps", "1", "--model.weights"]
    assert main([*flags, str(checkpoint)]) == 0
    line = f"Weights:     {checkpoint}, all (\\d+) tensors fit"
    found = re.search(line, capsys.readouterr().out)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert found
    assert int(found[1]) == sum(name.startswith("network.") for name in state)
    content = {name: value for name, value in state.items() if ".head." not in name}
    torch.save({"state_dict": content}, "headless.pth")
    assert main([*flags, "headless.pth"]) == 0
    assert "tensors fit" not in capsys.readouterr().out


def test_weights_of_another_variant(
    folder: Path, trained: Path, error_of: Callable[..., str]
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    flags = ["--model.network.channels", "16", "--model.weights", str(checkpoint)]
    assert str(checkpoint) in error_of("fit", "-c", "tiny.yaml", *flags)


def test_checkpoint_of_other_classes(folder: Path, trained: Path, images: Path) -> None:
    shutil.copytree(images / "val", "other/val")
    Path("other/val/blue").rename("other/val/azure")
    checkpoint = str(trained / "runs/tiny/version_0/checkpoints/last.ckpt")
    flags = ["-c", "tiny.yaml", "--ckpt_path", checkpoint]
    with pytest.warns(UserWarning, match="'blue' in the weights and 'azure' in the data"):
        assert main(["validate", *flags, "--data.root", "other"]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The checkpoint was trained for other classes")
        assert main(["validate", *flags]) == 0


@pytest.mark.parametrize(
    "command", [["validate"], ["predict", "--data.predict_dir", "renamed"], ["export"], ["fit"]]
)
def test_checkpoint_of_classes_in_another_order(
    command: list[str],
    folder: Path,
    trained: Path,
    images: Path,
    error_of: Callable[..., str],
) -> None:
    shutil.copytree(images, "renamed")
    for split in ("train", "val"):  # "blue" was the first of the sorted names
        Path("renamed", split, "blue").rename(Path("renamed", split, "violet"))
    checkpoint = str(trained / "runs/tiny/version_0/checkpoints/last.ckpt")
    data = ["--data.root", "renamed"]
    error = error_of(*command, "-c", "tiny.yaml", "--ckpt_path", checkpoint, *data)
    assert "'green' is number 1 in the weights and 0 in the data" in error
    assert "The weights know blue, green, red in this order. Train again" in error
    assert not Path("exported").exists()


def test_checkpoint_of_other_optimizer_groups(
    folder: Path, trained: Path, error_of: Callable[..., str]
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    flags = ["--model.layer_decay", "0.9", "--ckpt_path", str(checkpoint)]
    assert "groups the parameters for the optimizer" in error_of("fit", "-c", "tiny.yaml", *flags)
