"""``--model.lora`` in the three tasks, and merging on export."""

from functools import partial
from pathlib import Path

import pytest
import torch

from src.cli import build, main
from src.cli.commands.export import load
from src.errors import UserError
from src.hub import Pretrained
from src.models import InternImage, InternImageBackbone
from src.models.internimage.composite import CBInternImageBackbone
from src.models.layers.low_rank import merge_low_rank
from src.models.weights import load_official
from src.tasks.partial_training import adapt
from tests.cli.tiny import BACKBONE, TASKS, write_data, write_recipe

LORA = ("--model.lora", "2", "--model.optimizer.lr", "0.05", "--model.lr_scheduler", "null")


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, request.param, write_data(tmp_path / "data", request.param))
    return str(request.param)


@pytest.mark.slow
def test_factors_are_trained_and_merged_on_export(task: str) -> None:
    network = build(["-c", f"{task}.yaml"]).model.training_network
    torch.save(network.state_dict(), "weights.pth")
    flags = [*LORA, "--model.weights", "weights.pth", "--model.freeze", "1"]
    flags += ["--trainer.callbacks+=EMA", "--trainer.callbacks.decay", "0.5"]
    assert main(["fit", "-c", f"{task}.yaml", *flags]) == 0
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert main(["fit", "-c", f"{task}.yaml", *flags, *more]) == 0

    checkpoint = f"runs/{task}/version_1/checkpoints/last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    state = {name.removeprefix("network."): value for name, value in state.items()}
    adapted = "levels.1.blocks.0.mlp.fc1."
    adapted = adapted if task == "classification" else f"backbone.{adapted}"
    factor = f"{adapted}parametrizations.weight.0."
    before = network.state_dict()
    assert torch.equal(
        state[f"{adapted}parametrizations.weight.original"], before[f"{adapted}weight"]
    )
    assert state[f"{factor}up"].abs().max() > 0
    assert not any("levels.0." in name and "parametrizations" in name for name in state)

    exported = load(["-c", f"{task}.yaml", *LORA, "--model.freeze", "1"], checkpoint)[0]
    merged = exported.pretrained.network.state_dict()
    assert merged.keys() == before.keys()
    expected = before[f"{adapted}weight"] + state[f"{factor}up"] @ state[f"{factor}down"]
    torch.testing.assert_close(merged[f"{adapted}weight"], expected)

    from_run = Pretrained.from_pretrained(checkpoint).network.state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in from_run.items())

    # The checkpoint is also a source of weights for a network without factors.
    load_official(network, checkpoint)
    for name, value in merged.items():
        torch.testing.assert_close(network.state_dict()[name], value)


def test_only_factors_and_the_head_are_trained(task: str) -> None:
    network = build(["-c", f"{task}.yaml", "--model.lora", "2"]).model.training_network
    for name, parameter in network.named_parameters():
        is_factor = name.endswith((".0.up", ".0.down"))
        is_backbone = name.removeprefix("backbone.").startswith(("patch_embed.", "levels."))
        assert parameter.requires_grad == (is_factor or not is_backbone), name


@torch.no_grad()  # in training, an MLP without factors is one operator, which rounds differently
def test_new_factors_and_merging_do_not_change_the_outputs() -> None:
    torch.manual_seed(0)
    network, image = InternImage(num_classes=3, **BACKBONE).eval(), torch.randn(1, 3, 32, 32)
    before = network(image)
    adapt(network, 2)
    # Adapted layers are evaluated without packed weights, so results differ by rounding.
    torch.testing.assert_close(network(image), before)
    with torch.enable_grad():
        torch.testing.assert_close(network(image), before)
    for name, parameter in network.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    changed = network(image)
    assert not torch.allclose(changed, before)
    merge_low_rank(network)
    torch.testing.assert_close(network(image), changed)
    assert not any("parametrizations" in name for name in network.state_dict())


def test_both_parts_of_a_composite_backbone_are_adapted() -> None:
    backbone = CBInternImageBackbone(partial(InternImageBackbone, **BACKBONE))
    adapt(backbone, 1)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert all(name.endswith((".0.up", ".0.down")) for name in trained)
    assert {name.split(".")[1] for name in trained} == {"0", "1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.lora", "0"), "model.lora is a rank of at least 1 or null, got 0"),
        (("--model.lora", "2", "--model.freeze", "backbone"), "nothing for model.lora to train"),
        (
            ("--model.lora", "2", "--trainer.strategy", "fsdp2", "--trainer.callbacks=[]"),
            "model.lora does not support sharded networks",
        ),
    ],
)
def test_settings_that_do_not_go_with_it(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    where = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "-c", str(trained / "tiny.yaml"), *where, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_network_that_cannot_be_adapted() -> None:
    with pytest.raises(UserError, match=r"which Linear does not have; set model.lora to null"):
        adapt(torch.nn.Linear(2, 2), 1)
