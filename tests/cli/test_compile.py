"""``model.compile`` in all tasks, with activation checkpointing and FSDP2."""

import csv

import pytest
import torch
import yaml
from torch._dynamo.utils import counters

from src.cli import build, main
from src.cli.commands.prepare import main as prepare
from src.models.layers import compilation
from src.models.layers.compilation import RepeatedPart
from src.serialization import read_checkpoint
from tests.cli import tiny

SMALL = {"channels": 8, "depths": [2, 1, 2, 1], "groups": [1, 2, 4, 8], "drop_path_rate": 0.2}


@pytest.fixture
def quick_compiler(monkeypatch):
    """Graphs are traced and checked, but not translated to C++, which takes long."""
    compile_ = torch.compile

    def without_inductor(function, options, **rest):
        return compile_(function, backend="aot_eager", **rest)

    torch._dynamo.reset()
    counters.clear()
    compilation._compiled.cache_clear()
    monkeypatch.setattr(compilation.torch, "compile", without_inductor)
    yield
    compilation._compiled.cache_clear()


def first_step(config, *flags):
    """Loss of the first batch and the norm of its gradient."""
    torch.manual_seed(0)
    cli = build(["-c", str(config), "--data.num_workers", "0", *flags])
    cli.datamodule.setup("fit")
    batch = cli.datamodule.normalise(next(iter(cli.datamodule.train_dataloader())))
    torch.manual_seed(0)
    loss = cli.model.train().training_step(batch, 0)
    loss.backward()
    gradients = [p.grad.norm() for p in cli.model.parameters() if p.grad is not None]
    return torch.stack([loss.detach(), torch.stack(gradients).norm()])


def toy_recipe(root, source, **backbone):
    """A toy recipe with small images and another backbone; data are prepared in ``root``."""
    size = ["--train", "2", "--val", "1", "--predict", "1", "--size", "64"]
    prepare(["toy", "--root", str(root / "toy"), *size])
    recipe = yaml.safe_load((tiny.ROOT / "configs" / "toy" / f"{source}.yaml").read_text())
    network = recipe["model"]["init_args"]["network"]["init_args"]
    if source == "classification":
        network.clear()
        network |= backbone
    else:
        network["backbone"]["init_args"] = {
            key: value
            for key, value in network["backbone"]["init_args"].items()
            if key == "out_indices"
        } | backbone
    arguments = recipe["data"]["init_args"]
    arguments["root"] = str(root / arguments["root"].removeprefix("data/"))
    arguments["batch_size"] = 2
    path = root / f"{source}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def check_same_step(config, *flags):
    eager = first_step(config, *flags)
    compiled = first_step(config, *flags, "--model.compile", "true")
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=0)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@pytest.mark.slow
def test_fit_and_evaluate(tmp_path, monkeypatch, write_recipe, quick_compiler):
    monkeypatch.chdir(tmp_path)
    config = str(write_recipe(tmp_path))
    assert main(["fit", "-c", config, "--model.compile", "true", "--trainer.max_epochs", "1"]) == 0
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    checkpoint = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    content = read_checkpoint(checkpoint)
    assert "compile" not in str(content["hyper_parameters"])
    for command in ("validate", "test"):
        flags = ["-c", config, "--ckpt_path", str(checkpoint), "--model.compile", "default"]
        assert main([command, *flags]) == 0


@pytest.mark.slow
def test_compiled_then_sharded(tmp_path, monkeypatch, write_recipe, quick_compiler):
    """FSDP2 on one rank trains as without, with activation checkpointing and autocast."""
    monkeypatch.chdir(tmp_path)
    config = str(write_recipe(tmp_path))
    flags = ["--trainer.strategy", "fsdp2", "--trainer.devices", "1", "--trainer.max_epochs", "1"]
    flags += ["--model.network.grad_checkpointing", "true", "--trainer.precision", "bf16-mixed"]
    losses = []
    for compiled in ("false", "true"):
        assert main(["fit", "-c", config, *flags, "--model.compile", compiled]) == 0
        table = max((tmp_path / "runs" / "tiny").glob("version_*")) / "metrics.csv"
        rows = list(csv.DictReader(table.read_text().splitlines()))
        losses.append([float(row["val/loss"]) for row in rows if row.get("val/loss")])
    assert counters["stats"]["unique_graphs"] > 0
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_same_step_of_dense_tasks(tmp_path, task, quick_compiler):
    config = tiny.write_recipe(tmp_path, task, tiny.write_data(tmp_path / "data", task))
    check_same_step(config)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["dino", "mask2former"])
def test_same_step_of_transformers(tmp_path, source, quick_compiler):
    check_same_step(toy_recipe(tmp_path, source, **SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["classification", "detection", "segmentation", "dino"])
def test_same_step_of_internimage_t(tmp_path, source, quick_compiler):
    check_same_step(toy_recipe(tmp_path, source, variant="internimage_t", drop_path_rate=0.1))


@pytest.mark.slow
def test_compiled_to_machine_code(tmp_path, write_recipe):
    """Without `quick_compiler`; a single stage, as every stage takes a minute."""
    torch._dynamo.reset()
    counters.clear()
    stage = ["--model.network.depths", "[2]", "--model.network.groups", "[1]"]
    check_same_step(write_recipe(tmp_path), *stage)
    assert counters["stats"]["unique_graphs"] == 1


def test_task_decides_about_sizes(tmp_path, write_recipe):
    flags = ["--model.compile", "max-autotune-no-cudagraphs"]
    cli = build(["-c", str(write_recipe(tmp_path)), *flags])
    parts = [m for m in cli.model.network.modules() if isinstance(m, RepeatedPart)]
    assert parts
    assert {part.compilation for part in parts} == {("max-autotune-no-cudagraphs", False)}


def test_unknown_mode(tmp_path, write_recipe, capsys):
    assert main(["fit", "-c", str(write_recipe(tmp_path)), "--model.compile", "fastest"]) == 2
    assert "compile" in capsys.readouterr().err
