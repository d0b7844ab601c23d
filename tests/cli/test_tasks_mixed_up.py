"""Checkpoints and recipes of two tasks in one command."""

import shutil
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.config_files import CONFIGS
from src.data.toy.coco import write_toy_coco
from src.data.toy.layout import ToySettings

DETECTION = str(CONFIGS / "toy" / "detection.yaml")


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Checkpoint of a classifier, beside the toy dataset of the detectors."""
    monkeypatch.chdir(tmp_path)
    write_toy_coco(Path("data/toy/coco"), ToySettings(train=2, val=2, predict=1, size=64))
    return shutil.copy(trained / "runs/tiny/version_0/checkpoints/last.ckpt", "classifier.ckpt")


@pytest.mark.filterwarnings("ignore:The checkpoint was trained for other classes")
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_task_is_named(
    checkpoint: str, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    flags = ["--data.root", "data/toy/coco", "--data.num_workers", "0"]
    assert main([command, "-c", DETECTION, "--ckpt_path", checkpoint, *flags]) == 2
    assert (
        "error: The checkpoint is of ClassificationTask with InternImage, and the recipe is of"
        " DetectionTask with MaskRCNN. Use the config.yaml of the run"
    ) in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The checkpoint was trained for other classes")
def test_weights_are_described_if_a_checkpoint_does_not_name_its_task(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["hyper_parameters"]
    torch.save(content, "nameless.ckpt")
    flags = ["--data.root", "data/toy/coco", "--data.num_workers", "0"]
    assert main(["validate", "-c", DETECTION, "--ckpt_path", "nameless.ckpt", *flags]) == 2
    assert "does not match this network: " in capsys.readouterr().err


def test_recipes_of_two_tasks_lead_to_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    classification = str(CONFIGS / "toy" / "classification.yaml")
    trainer = str(CONFIGS / "debug" / "fast.yaml")
    note = "note: The recipes are of different tasks, of which the last one is used: "
    main(["fit", "-c", classification, f"--config={DETECTION}", "--print_config"])
    both = f"{classification} (ClassificationTask), {DETECTION} (DetectionTask)."
    assert note + both in capsys.readouterr().err
    main(["fit", "-c", classification, "-c", trainer, "--print_config"])
    assert note not in capsys.readouterr().err
