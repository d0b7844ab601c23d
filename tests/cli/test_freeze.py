"""``--model.freeze`` in the three tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.cli import build, main
from src.errors import UserError
from src.tasks.partial_training import freeze
from tests.cli.tiny import TASKS, write_data, write_recipe

LAST = "checkpoints/last.ckpt"
EMA = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay", "0.5")


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a task, whose recipe is in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, request.param, write_data(tmp_path / "data", request.param))
    return str(request.param)


def network_of(task: str, *flags: str) -> torch.nn.Module:
    return build(["-c", f"{task}.yaml", *flags]).model.training_network


def is_backbone(name: str) -> bool:
    return name.removeprefix("backbone.").startswith(("patch_embed.", "levels."))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    content = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): value for name, value in content.items()}


def parameters_in_optimizer(checkpoint: Path) -> set[str]:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return {name for group in content["optimization"]["parameters"] for name in group}


@pytest.mark.slow
def test_a_frozen_backbone_keeps_its_weights_and_the_rest_is_trained(task: str) -> None:
    network = network_of(task)
    torch.save(network.state_dict(), "weights.pth")
    flags = ["--model.weights", "weights.pth", "--model.freeze", "backbone", *EMA]
    assert main(["fit", "-c", f"{task}.yaml", *flags, "--model.layer_decay", "0.5"]) == 0

    checkpoint = Path(f"runs/{task}/version_0") / LAST
    before, after = network.state_dict(), weights_of(checkpoint)
    for name, value in before.items():
        if is_backbone(name):
            assert torch.equal(after[name], value), name
    trained = {name for name, _ in network.named_parameters() if not is_backbone(name)}
    assert parameters_in_optimizer(checkpoint) == trained
    assert any(not torch.equal(after[name], before[name]) for name in trained)

    resume = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert main(["fit", "-c", f"{task}.yaml", *flags, "--model.layer_decay", "0.5", *resume]) == 0
    after = weights_of(Path(f"runs/{task}/version_1") / LAST)
    assert all(torch.equal(after[name], before[name]) for name in before if is_backbone(name))


@pytest.mark.parametrize(("stages", "frozen"), [(0, ()), (2, ("levels.0.", "levels.1."))])
def test_freezing_up_to_a_stage(task: str, stages: int, frozen: tuple[str, ...]) -> None:
    network = network_of(task, "--model.freeze", str(stages)).train()
    fixed = ("patch_embed.", *frozen)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.removeprefix("backbone.").startswith(fixed)
    for name, module in network.named_modules():
        assert module.training != f"{name.removeprefix('backbone.')}.".startswith(
            (*fixed, "pos_drop.")
        )


def test_a_number_of_stages_that_does_not_exist(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", str(trained / "tiny.yaml"), "--model.freeze", "5"]) == 2
    assert "must be 0 (only the stem) to 4, got 5" in capsys.readouterr().err


def test_resuming_with_another_frozen_part_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(trained / "runs/tiny/version_0" / LAST)
    flags = ["--trainer.max_epochs", "3", "--ckpt_path", checkpoint, "--model.freeze", "2"]
    assert main(["fit", "-c", str(trained / "tiny.yaml"), *flags]) == 2
    assert "Keep layer_decay, dcn_lr_scale and freeze as they were" in capsys.readouterr().err


def test_a_network_that_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match=r"which Linear does not have; set model.freeze to null"):
        freeze(torch.nn.Linear(2, 2), "backbone")


def test_frozen_random_weights_are_reported(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    flags = ["--model.freeze", "1", "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="freezes randomly initialised weights"):
        assert main(["fit", "-c", "tiny.yaml", *flags]) == 0
