"""The warning about a detector that starts from random weights with few images."""

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from src.cli import build, main
from src.config_files import CONFIGS
from src.tasks.detection import warn_if_few
from tests.cli.tiny import write_data, write_recipe


@pytest.mark.slow
def test_only_a_detector_from_scratch_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, "detection", write_data(tmp_path / "data", "detection"))
    toy = ["fit", "-c", "detection.yaml"]  # without the warning, like the recipe it is from
    fit = [*toy, "--model.warn_few_images", "true"]
    with pytest.warns(UserWarning, match="only 4 training images; .*Add --network t to"):
        assert main(fit) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The detector starts from random weights")
        assert main(toy) == 0
    torch.save(build(fit[1:]).model.training_network.state_dict(), "weights.pth")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The detector starts from random weights")
        assert main([*fit, "--model.weights", "weights.pth"]) == 0
        assert main([*fit, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0


@pytest.mark.parametrize("name", ["detection", "dino"])
def test_recipes_for_trying_commands_are_not_warned_about(name: str, tmp_path: Path) -> None:
    data = ["--data.root", str(tmp_path), "--data.class_names", "coco"]  # no dataset is needed
    built = build(["-c", f"{CONFIGS}/toy/{name}.yaml", *data])
    assert not built.model.warn_few_images


class Endless(IterableDataset):
    """Images without a known number."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


@pytest.mark.parametrize("loader", [DataLoader(Endless()), [DataLoader([1]), DataLoader([2])]])
def test_an_unknown_number_of_images_is_not_warned_about(loader: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few(SimpleNamespace(train_dataloader=loader))
