"""Sharded checkpoints: folders, other numbers of ranks, single files, official names."""

from pathlib import Path

import pytest
import torch

from src.cli import main
from src.models.weights import load_official
from tests.distributed.conftest import Launcher, Run

STEPS = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "8")
EMA = (
    *("--trainer.callbacks+=EMA", "--trainer.callbacks.decay", "0.5"),
    *("--trainer.callbacks.warmup_steps", "4"),
)
CLIP = ("--trainer.gradient_clip_val", "0.5")
LAYERS = ("--model.layer_decay", "0.5", "--model.dcn_lr_scale", "0.1")
SAVE = ("--checkpoint.every_n_train_steps", "4")
FLAGS = (*STEPS, *EMA, *CLIP, *LAYERS, *SAVE)
SHARDED = ("--trainer.strategy", "fsdp2")
ALONE = ("--trainer.accumulate_grad_batches", "2")


@pytest.fixture(scope="module")
def alone(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Uninterrupted run on one rank."""
    return launch(tmp_path_factory.mktemp("alone"), "classification", *FLAGS, *ALONE)


@pytest.fixture(scope="module")
def half(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run on two ranks with a sharded network, stopped in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("half")
    stopped = (*FLAGS[:2], "--trainer.max_steps", "4", *FLAGS[4:])
    return launch(folder, "classification", *stopped, *SHARDED, ranks=2)


def last(run: Run, version: int = 0) -> Path:
    return run.folder / f"version_{version}" / "checkpoints" / "last.ckpt"


def assert_same_networks(content: dict, expected: dict) -> None:
    for entry in ("state_dict", "current_model_state"):  # EMA weights, raw weights
        for name, value in expected[entry].items():
            if "running_" in name or "num_batches" in name:
                continue  # one rank updates them twice per step, with half of the images each
            if name == "network.levels.3.norm.bias":
                continue  # before batch norm: Adam amplifies the rounding errors of its gradient
            torch.testing.assert_close(content[entry][name], value, atol=1e-5, rtol=1e-4)


def whole(path: Path, tmp_path: Path, *flags: str) -> dict:
    if path.is_file():
        return torch.load(path, weights_only=True)
    output = tmp_path / f"whole{len(list(tmp_path.iterdir()))}"
    assert main(["consolidate", str(path), "--output", str(output), *flags]) == 0
    return torch.load(output, weights_only=True)


@pytest.mark.slow
def test_ema_clipping_and_layer_decay_equal_those_of_one_rank(
    launch: Launcher, alone: Run, tmp_path: Path
) -> None:
    two = launch(tmp_path, "classification", *FLAGS, *SHARDED, ranks=2)
    assert two.losses == pytest.approx(alone.losses, abs=1e-5)
    expected = torch.load(last(alone), weights_only=True)
    content = whole(last(two), tmp_path)
    assert set(content) == set(expected)
    assert_same_networks(content, expected)
    ours, theirs = content["optimizer_states"][0], expected["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"]
    assert len(ours["param_groups"]) > 2
    for number, state in theirs["state"].items():
        torch.testing.assert_close(ours["state"][number], state, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_a_folder_resumes_on_another_number_of_ranks(
    launch: Launcher, alone: Run, half: Run, tmp_path: Path, ranks: int, strategy: str
) -> None:
    flags = (*FLAGS, "--trainer.strategy", strategy, "--ckpt_path", str(last(half)))
    flags += ALONE if ranks == 1 else ()
    rest = launch(tmp_path, "classification", *flags, ranks=ranks)
    assert sorted(rest.losses) == [5, 6, 7, 8]
    assert rest.losses == pytest.approx({s: alone.losses[s] for s in rest.losses}, abs=1e-5)
    expected = torch.load(last(alone), weights_only=True)
    assert_same_networks(whole(last(rest), tmp_path), expected)


@pytest.mark.slow
def test_a_file_of_one_rank_resumes_on_two(
    launch: Launcher, alone: Run, half: Run, tmp_path: Path
) -> None:
    output = tmp_path / "whole.ckpt"
    assert main(["consolidate", str(last(half)), "--output", str(output)]) == 0
    flags = (*FLAGS, *SHARDED, "--ckpt_path", str(output))
    rest = launch(tmp_path, "classification", *flags, ranks=2)
    assert rest.losses == pytest.approx({s: alone.losses[s] for s in rest.losses}, abs=1e-5)


@pytest.mark.slow
def test_consolidate_with_official_names(half: Run, tmp_path: Path) -> None:
    from src.models import InternImage
    from tests.distributed.conftest import BACKBONE

    for raw, entry in ((), "state_dict"), (("--raw",), "current_model_state"):
        official = whole(last(half), tmp_path, "--official", *raw)
        assert "patch_embed.norm1.1.weight" in official["model"]
        network = InternImage(num_classes=3, **BACKBONE)
        assert load_official(network, official).fresh == ()
        expected = whole(last(half), tmp_path, "--weights_only")
        assert "optimizer_states" not in expected
        for name, value in network.state_dict().items():
            assert torch.equal(value, expected[entry][f"network.{name}"])


@pytest.mark.slow
def test_validation_uses_the_ema_weights_of_a_folder(
    launch: Launcher, half: Run, tmp_path: Path
) -> None:
    output = tmp_path / "whole.ckpt"
    assert main(["consolidate", str(last(half)), "--output", str(output)]) == 0
    metrics = []
    for ranks, path in ((2, last(half)), (1, output)):
        flags = ("--ckpt_path", str(path), "--trainer.strategy", "fsdp2" if ranks == 2 else "auto")
        run = launch(
            tmp_path / str(ranks), "classification", *flags, ranks=ranks, command="validate"
        )
        (table,) = (tmp_path / str(ranks)).rglob("metrics.csv")
        metrics.append(
            dict(zip(*(line.split(",") for line in table.read_text().split()), strict=True))
        )
        assert run.codes == [0] * ranks
    assert float(metrics[0]["val/loss"]) == pytest.approx(float(metrics[1]["val/loss"]), abs=1e-5)


@pytest.mark.slow
def test_other_parameter_groups_are_refused(launch: Launcher, half: Run, tmp_path: Path) -> None:
    flags = (*STEPS, *EMA, *SHARDED, "--ckpt_path", str(last(half)))
    run = launch(tmp_path, "classification", *flags, ranks=2, succeeds=False)
    assert run.codes == [2, 2]
    assert "groups the parameters for the optimizer" in run.output[0]


@pytest.mark.slow
def test_a_frozen_backbone_is_resumed_in_shards(launch: Launcher, tmp_path: Path) -> None:
    flags = (*FLAGS, "--model.freeze", "3")
    alone = launch(tmp_path / "alone", "classification", *flags, *ALONE)
    half = (*flags[:2], "--trainer.max_steps", "4", *flags[4:])
    run = launch(tmp_path / "two", "classification", *half, *SHARDED, ranks=2)
    more = (*flags, *SHARDED, "--ckpt_path", str(last(run)))
    resumed = launch(tmp_path / "two", "classification", *more, ranks=2)
    late = {step: loss for step, loss in alone.losses.items() if step > 4}
    assert resumed.losses == pytest.approx(late, abs=1e-5)
    content = whole(last(resumed, 1), tmp_path)
    expected = torch.load(last(alone), weights_only=True)
    assert_same_networks(content, expected)
    stem = "network.patch_embed.conv1.weight"
    assert torch.equal(content["state_dict"][stem], content["current_model_state"][stem])
