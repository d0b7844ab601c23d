"""Training the head on cached features of a frozen backbone."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.callbacks import CachedFeatures
from src.callbacks.fingerprint import fingerprint
from src.cli import main
from src.data.datasets.features import FeatureDataset, FeatureSample
from src.errors import UserError
from tests.cli.tiny import ROOT, save_image, write_data, write_recipe

FILE = str(ROOT / "configs" / "callbacks" / "cached_features.yaml")
CENTRED = {  # the same view as in evaluation, without resizing
    "image_size": 64,
    "batch_size": 6,
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
    "hflip": 0.0,
    "color_jitter": 0.0,
    "num_workers": 0,
}


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Train on six square images with the recipe ``classification.yaml``."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        for split in ("train", "val"):
            save_image(Path(f"data/{split}/{'ab'[number % 2]}/{number}.png"), number, (64, 64))
    config = write_recipe(tmp_path, "classification", {"root": "data", **CENTRED})
    recipe = yaml.safe_load(config.read_text())
    recipe["trainer"]["max_epochs"] = 2
    config.write_text(yaml.safe_dump(recipe))
    return lambda *flags: main(["fit", "-c", "classification.yaml", *flags])


def last(version: int) -> dict[str, Any]:
    path = f"runs/classification-cached_features/version_{version}/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)


def folders() -> list[Path]:
    return sorted(Path("data/features").iterdir())


def test_the_head_is_trained_as_without_the_cache(fit: Callable[..., int]) -> None:
    sgd = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.5")
    sgd += ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay", "0.5")
    assert fit("-c", FILE, *sgd) == 0
    without = ("--model.freeze", "backbone", "--name", "classification-cached_features")
    assert fit(*without, *sgd) == 0
    for kind in ("state_dict", "current_model_state"):  # EMA weights, raw weights
        for name, value in last(0)[kind].items():
            torch.testing.assert_close(last(1)[kind][name], value, rtol=1e-5, atol=1e-6)
    steps = last(0)["current_model_state"]["network.conv_head.norm.num_batches_tracked"]
    assert steps == 2


def test_features_are_found_again_and_survive_a_damaged_file(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("-c", FILE) == 0
    assert capsys.readouterr().out.count("computed in") == 2
    assert fit("-c", FILE, "--trainer.max_epochs", "3", "--ckpt_path", "last") == 0
    assert capsys.readouterr().out.count(" MB, found)") == 2
    (file, _) = sorted(Path("data/features").glob("*/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    assert fit("-c", FILE) == 0
    said = capsys.readouterr().out
    assert (said.count("computed in"), said.count(" MB, found)")) == (1, 1)


@pytest.mark.parametrize("change", ["an image", "the weights", "a transform", "the order"])
def test_a_change_is_never_answered_with_old_features(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], change: str
) -> None:
    assert fit("-c", FILE) == 0
    capsys.readouterr()
    flags = []
    if change == "an image":
        save_image(Path("data/train/a/0.png"), 99, (64, 64))
    elif change == "the weights":
        flags = ["--seed_everything", "5"]
    elif change == "a transform":
        flags = ["--data.crop_pct", "0.5"]
    else:
        Path("data/train/a/0.png").rename("data/train/a/9.png")
    assert fit("-c", FILE, *flags) == 0
    expected = 2 if flags else 1  # the validation images are unchanged
    assert capsys.readouterr().out.count("computed in") == expected


def test_augmented_views_are_used_in_turn(
    fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []  # features of the first training image, one for each epoch
    item = FeatureDataset.__getitem__

    def record(dataset: FeatureDataset, index: int) -> FeatureSample:
        sample = item(dataset, index)
        if len(dataset.views) == 2 and index == 0:
            read.append(sample["features"])
        return sample

    monkeypatch.setattr(FeatureDataset, "__getitem__", record)
    flags = ["--trainer.callbacks.views", "2", "--data.crop_scale", "[0.2, 0.5]"]
    assert fit("-c", FILE, *flags, "--trainer.max_epochs", "3") == 0
    resume = ["--trainer.max_epochs", "4", "--ckpt_path", "last"]
    assert fit("-c", FILE, *flags, *resume) == 0
    assert len(read) == 4
    assert not torch.equal(read[0], read[1])
    assert torch.equal(read[0], read[2])
    assert torch.equal(read[1], read[3])  # the epoch after resuming


def test_augmented_views_are_reproducible(fit: Callable[..., int]) -> None:
    flags = ["--trainer.callbacks.views", "2", "--data.crop_scale", "[0.2, 0.5]"]
    assert fit("-c", FILE, *flags) == 0
    assert len(folders()) == 3
    assert fit("-c", FILE, *flags) == 0  # the views are reproducible
    assert len(folders()) == 3
    first, second = last(0)["state_dict"], last(1)["state_dict"]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_its_speed_is_measured(fit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """Training on features, inference on images."""
    config = ["-c", "classification.yaml", "-c", FILE]
    assert main(["benchmark", *config, "--warmup", "1", "--steps", "2"]) == 0
    output = capsys.readouterr().out
    assert "| training " in output
    assert "| inference " in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.freeze", "2"), "Set --model.freeze backbone; it is 2."),
        (("--model.mixup_alpha", "0.8"), "Set --model.mixup_alpha 0"),
        (("--data.broken_images", "skip"), "set --data.broken_images error"),
        (("--trainer.callbacks.max_gigabytes", "1e-6"), "CachedFeatures.max_gigabytes allows"),
        (("--trainer.precision", "bf16-true"), "Set --trainer.precision to 32-true or bf16-mixed"),
        (("--trainer.callbacks.views", "-1"), "CachedFeatures.views: expected 0 or more, got -1"),
    ],
)
def test_settings_that_do_not_go_with_it(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], flags: tuple, message: str
) -> None:
    assert fit("-c", FILE, *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("data/features/*"))


def test_other_tasks_are_refused_by_their_data_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "segmentation")
    recipe = write_recipe(tmp_path, "segmentation", data)
    callback = ["--trainer.callbacks+=CachedFeatures"]
    assert main(["fit", "-c", str(recipe), *callback]) == 2
    expected = f"one folder per class, not with the data in {data['root']}. Remove the callback."
    assert expected in capsys.readouterr().err


def test_a_folder_without_size_is_refused() -> None:
    with pytest.raises(UserError, match="expected a positive size, got 0"):
        CachedFeatures(max_gigabytes=0)


def test_equal_values_have_equal_fingerprints() -> None:
    def make(bias: float, keep: float) -> torch.nn.Module:
        layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(keep))
        torch.nn.init.constant_(layer[0].weight, 1.0)
        torch.nn.init.constant_(layer[0].bias, bias)
        return layer

    assert fingerprint(make(0, 0.5)) == fingerprint(make(0, 0.5).eval())
    assert fingerprint(make(0, 0.5)) != fingerprint(make(1e-8, 0.5))
    assert fingerprint(make(0, 0.5)) != fingerprint(make(0, 0.4))
    assert fingerprint([1, "1"]) != fingerprint(["1", 1])
    assert fingerprint({"a": os.path.join}) == fingerprint({"a": os.path.join})


def test_what_a_function_holds_is_part_of_its_fingerprint() -> None:
    def scale(factor: float) -> Callable[[float], float]:
        return lambda value: factor * value

    def shift(offset: float) -> Callable[[float], float]:
        def add(value: float, offset: float = offset) -> float:
            return value + offset

        return add

    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def apply(self, value: float) -> float:
            return self.factor * value

    for make in (scale, shift, lambda factor: Scale(factor).apply):
        assert fingerprint(make(2.0)) == fingerprint(make(2.0))
        assert fingerprint(make(2.0)) != fingerprint(make(3.0))
    assert fingerprint(math.sqrt) != fingerprint(math.exp)  # bound to their module
