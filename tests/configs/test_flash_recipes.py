"""FlashInternImage recipes: official names, shapes, counts and settings, on no device."""

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from jsonargparse import ArgumentParser

import src.models  # noqa: F401  registers the variants with timm
from src.data.datamodules.base import BaseDataModule
from src.hub import Pretrained
from src.models.weights import to_official
from src.models.weights.files import FLASH_REPO, HUB_FILES, hub_repository
from src.models.weights.names import official_names
from src.tasks.base import BaseTask

ROOT = Path(__file__).parents[2]
OFFICIAL = json.loads(
    gzip.decompress((ROOT / "tests/fixtures/flash_manifests.json.gz").read_bytes())
)
NETWORKS = OFFICIAL["networks"]
RECIPES = sorted(
    path for path in (ROOT / "configs").glob("*/*flash*.yaml") if path.parent.name != "model"
)
DENSE = [path for path in RECIPES if path.parent.name != "classification"]
CLASSES = {"classification": 1000, "detection": 80, "segmentation": 150}
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
every_dense_recipe = pytest.mark.parametrize("recipe", DENSE, ids=lambda path: path.stem)


def official_shapes(name: str) -> dict[str, list[int]]:
    entry = NETWORKS[name]
    if "same_as" in entry:
        return official_shapes(entry["same_as"])
    backbone = OFFICIAL["backbones"].get(entry.get("backbone"), {})
    return {f"backbone.{key}": shape for key, shape in backbone.items()} | entry["keys"]


def assert_official(network: torch.nn.Module, name: str) -> None:
    names = official_names(network)
    assert len(set(names.values())) == len(names)  # a file can be read and written
    shapes = {names[key]: list(value.shape) for key, value in network.state_dict().items()}
    assert shapes == official_shapes(name)
    assert sum(p.numel() for p in network.parameters()) == NETWORKS[name]["params"]


@cache
def task_of(recipe: Path) -> Any:
    """The task of a recipe with its network on no device."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseTask, "model")
    model = yaml.safe_load(recipe.read_text())["model"]
    model["init_args"] |= {"num_classes": CLASSES[recipe.parent.name], "weights": None}
    task = parser.instantiate_classes(parser.parse_object({"model": model})).model
    with torch.device("meta"):
        task.configure_model()
    return task


def test_every_published_file_has_a_recipe() -> None:
    names = {name for name in HUB_FILES if hub_repository(name) == FLASH_REPO}
    assert names == NETWORKS.keys()
    assert len(names) == 25
    assert names - {path.stem for path in RECIPES} == {"flash_intern_image_l_22k_384"}


@pytest.mark.parametrize("name", NETWORKS)
def test_line_of_the_model_zoo(name: str) -> None:
    page = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    shapes, parameters = official_shapes(name), NETWORKS[name]["params"]
    assert f"| `{name}` | {len(shapes)} | {parameters:,} |" in page


@every_recipe
def test_network_is_the_official_one(recipe: Path) -> None:
    assert_official(task_of(recipe).network, recipe.stem)


@pytest.mark.slow
@every_recipe
def test_published_file_by_name(recipe: Path, tmp_path: Path) -> None:
    """A file with the official names and shapes in place of the download."""
    values = {name: zlib.crc32(name.encode()) / 2**32 for name in official_shapes(recipe.stem)}
    state = {
        name: torch.tensor(3) if "num_batches" in name else torch.full(shape, values[name])
        for name, shape in official_shapes(recipe.stem).items()
    }
    torch.save({"model": state}, tmp_path / f"{recipe.stem}.pth")
    model = Pretrained.from_pretrained(tmp_path / f"{recipe.stem}.pth")
    assert model.task == recipe.parent.name
    assert len(model.class_names) == CLASSES[recipe.parent.name]
    official = to_official(model.network)
    assert official.keys() == state.keys()
    for name, value in official.items():
        assert (value == state[name]).all(), name


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("flash_internimage_t.in1k_224", "flash_intern_image_t_1k_224"),
        ("flash_internimage_s.in1k_224", "flash_intern_image_s_1k_224"),
        ("flash_internimage_b.in1k_224", "flash_intern_image_b_1k_224"),
        ("flash_internimage_l.in22k_ft_in1k_384", "flash_internimage_l_22kto1k_384"),
        ("flash_internimage_l.in22k_384", "flash_intern_image_l_22k_384"),
    ],
)
def test_timm_name(name: str, file: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert_official(network, file)
    cfg = network.pretrained_cfg
    assert f"{cfg['hf_hub_id']}/{cfg['hf_hub_filename']}" == f"OpenGVLab/DCNv4/{file}.pth"


@every_dense_recipe
def test_settings_are_the_official_ones(recipe: Path) -> None:
    config, official = yaml.safe_load(recipe.read_text()), NETWORKS[recipe.stem]["settings"]
    model, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]
    backbone = model["network"]["init_args"]["backbone"]["init_args"]
    optimizer = model["optimizer"]["init_args"]
    found = {
        "drop_path": backbone["drop_path_rate"],
        "checkpointing": backbone.get("grad_checkpointing", False),
        "lr": optimizer["lr"],
        "weight_decay": optimizer["weight_decay"],
        "layer_decay": model.get("layer_decay", None if "backbone_lr_scale" in model else 1.0),
        "offset_lr_scale": model.get("offset_lr_scale", 1.0),
        "clip": trainer.get("gradient_clip_val"),
        "batch": model["reference_batch_size"],
        "init": model["weights"],
    }
    if "max_epochs" in trainer:
        found["milestones"] = model["lr_scheduler"]["init_args"]["milestones"]
        found["epochs"] = trainer["max_epochs"]
        found["is_ema"] = "callbacks" in trainer
    else:
        found["steps"] = trainer["max_steps"]
        found["every"] = trainer["val_check_interval"]
    assert found == official
    assert data["init_args"]["batch_size"] * 8 == official["batch"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, "data")
    parser.instantiate_classes(parser.parse_object({"data": data}))


def test_learning_rates_of_offsets() -> None:
    recipe = ROOT / "configs/detection/mask_rcnn_flash_internimage_b_fpn_3x_coco.yaml"
    task = task_of(recipe)
    scales = {
        id(p): group["lr_scale"] for group in task.parameter_groups() for p in group["params"]
    }
    rates = {name: scales[id(p)] for name, p in task.network.named_parameters()}
    last = "backbone.levels.3.blocks.3.dcn"
    assert rates[f"{last}.offset_mask.weight"] == pytest.approx(0.9 * 0.01)
    assert rates[f"{last}.offset_mask_dw.weight"] == pytest.approx(0.9)
    assert rates[f"{last}.value_proj.weight"] == pytest.approx(0.9)


def test_classifier_l_learns_offsets_slowly() -> None:
    recipe = ROOT / "configs/classification/flash_internimage_l_22kto1k_384.yaml"
    task = task_of(recipe)
    scales = {
        id(p): group["lr_scale"] for group in task.parameter_groups() for p in group["params"]
    }
    rates = {name: scales[id(p)] for name, p in task.network.named_parameters()}
    last = "levels.3.blocks.4.dcn"
    for layer in ("offset_mask", "offset_mask_dw"):
        assert rates[f"{last}.{layer}.weight"] == pytest.approx(0.1)
    assert rates[f"{last}.value_proj.weight"] == 1.0
