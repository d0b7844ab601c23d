"""``--trainer.strategy`` from the command line and from files, for the three tasks."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from src.cli import build, main
from src.models.internimage.blocks import Block
from src.strategies import FSDP1Strategy, FSDP2Strategy

ROOT = Path(__file__).resolve().parents[2]
RECIPES = (
    "classification/internimage_h_22kto1k_640",
    "detection/cascade_internimage_xl_fpn_3x_coco",
    "segmentation/upernet_internimage_h_896_160k_ade20k",
)
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, fit would run")


@pytest.fixture(scope="module")
def config(tmp_path_factory, write_recipe):
    """Recipe without EMA, which FSDP1 does not support."""
    folder = tmp_path_factory.mktemp("recipe")
    path = write_recipe(folder)
    recipe = yaml.safe_load(path.read_text())
    recipe["trainer"]["callbacks"] = []
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_fsdp2_by_its_name(config):
    strategy = build(["-c", str(config), "--trainer.strategy", "fsdp2"]).trainer.strategy
    assert isinstance(strategy, FSDP2Strategy)
    assert strategy._save_distributed_checkpoint


def test_settings_of_a_strategy_from_the_command_line(config):
    flags = ["--trainer.strategy", "FSDP2Strategy"]
    flags += ["--trainer.strategy.save_distributed_checkpoint", "false"]
    strategy = build(["-c", str(config), *flags]).trainer.strategy
    assert not strategy._save_distributed_checkpoint


@pytest.mark.slow
@WITHOUT_GPU
@pytest.mark.parametrize(
    "flags",
    [
        ["fsdp1"],
        ["fsdp"],
        ["FSDP1Strategy", "--trainer.strategy.sharding_strategy", "SHARD_GRAD_OP"],
        [
            "FSDP1Strategy",
            "--trainer.strategy.auto_wrap_policy",
            "[src.models.internimage.blocks.Block]",
        ],
        [
            "FSDPStrategy",
            "--trainer.strategy.activation_checkpointing_policy=[src.models.internimage.blocks.Block]",
            "--trainer.strategy.state_dict_type=sharded",
            "--trainer.strategy.cpu_offload=true",
        ],
    ],
    ids=lambda flags: " ".join(flags)[:40],
)
def test_fsdp1_needs_a_gpu(config, tmp_path, capsys, flags):
    where = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "-c", str(config), *where, "--trainer.strategy", *flags]) == 2
    assert re.search(r"fsdp1? (requires|needs) a GPU", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_strategy_files_go_with_every_task(recipe, name, capsys):
    files = ["-c", f"configs/{recipe}.yaml", "-c", f"configs/trainer/{name}.yaml"]
    assert main(["fit", *files, "--print_config=skip_null"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["strategy"]["class_path"].endswith(f"{name.upper()}Strategy")


def test_fsdp1_wraps_blocks_by_default():
    strategy = FSDP1Strategy()
    assert strategy.kwargs["auto_wrap_policy"]._module_classes == {Block}
    assert strategy._state_dict_type == "sharded"


def test_tensor_parallelism_is_refused_at_the_start(config, tmp_path, capsys):
    flags = ["--trainer.strategy", "ModelParallelStrategy"]
    flags += ["--trainer.strategy.tensor_parallel_size", "2", "--trainer.devices", "1"]
    where = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "-c", str(config), *where, *flags]) != 0
    assert "tensor_parallel_size" in capsys.readouterr().err
