"""Mask2Former recipes: official names, shapes and parameter counts, on no device."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from src.data.datamodules.base import BaseDataModule
from src.losses.mask_set import MaskSetLoss
from src.models.weights.files import HUB_FILES
from src.models.weights.names import official_names
from src.tasks import SegmentationTask

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    (ROOT / "configs" / "segmentation").glob("mask2former_internimage_*_cocostuff*.yaml")
)
MANIFESTS = ROOT / "tests" / "fixtures" / "state_dict_manifests.json.gz"
PARAMETERS = {"ade20k": 1_313_496_135, "coco_stuff164k": 1_313_517_660}
PARAMETERS["coco_stuff10k"] = PARAMETERS["coco_stuff164k"]
SCHEDULES = {
    "ade20k": {"lr": 1e-5, "side": 896, "steps": 80_000, "clip": 0.1},
    "coco_stuff164k": {"lr": 2e-5, "side": 896, "steps": 80_000, "clip": None},
    "coco_stuff10k": {"lr": 1e-5, "side": 512, "steps": 40_000, "clip": None},
}


def data_set(recipe):
    if recipe.stem.endswith("_to_10k"):
        return "coco_stuff10k"
    return "coco_stuff164k" if recipe.stem.endswith("_cocostuff164k") else "ade20k"


@cache
def parts_of(recipe):
    """Task and data module of a recipe; the number of classes goes from one to the other."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationTask, "model")
    parser.add_subclass_arguments(BaseDataModule, "data")
    parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
    config = yaml.safe_load(recipe.read_text())
    parts = parser.parse_object({"model": config["model"], "data": config["data"]})
    parts = parser.instantiate_classes(parts)
    return parts.model, parts.data


@cache
def shapes_of(network, num_classes):
    """Official names and shapes of a network, and its number of parameters."""
    recipe = next(path for path in RECIPES if network_of(path) == network)
    with torch.device("meta"):
        built = parts_of(recipe)[0].network_factory(num_classes=num_classes)
    names = official_names(built)
    shapes = {names[name]: list(value.shape) for name, value in built.state_dict().items()}
    return shapes, sum(p.numel() for p in built.parameters())


def network_of(recipe):
    return json.dumps(yaml.safe_load(recipe.read_text())["model"]["init_args"]["network"])


@pytest.fixture(scope="module")
def manifests():
    return json.loads(gzip.decompress(MANIFESTS.read_bytes()))


def test_there_are_four():
    assert len(RECIPES) == 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_network_is_the_official_one(recipe, manifests):
    task, data = parts_of(recipe)
    networks = manifests["segmentation"]
    manifest = networks[f"{data_set(recipe)}/{recipe.stem}"]
    extra = manifest["extra"]
    if isinstance(extra, str):
        extra = networks[extra.removeprefix("same as segmentation/")]["extra"]
    backbone = manifests["backbone_detseg"][manifest["backbone_variant"]]
    expected = {f"backbone.{name}": shape for name, shape in backbone.items()} | extra
    shapes, count = shapes_of(network_of(recipe), data.num_classes)
    assert shapes == expected
    assert count == PARAMETERS[data_set(recipe)] == manifest["params"]
    assert isinstance(task.build_loss(), MaskSetLoss)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_schedule_and_data_are_the_official_ones(recipe):
    config, official = yaml.safe_load(recipe.read_text()), SCHEDULES[data_set(recipe)]
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    side = official["side"]
    assert (data["image_scale"], data["crop_size"]) == ([4 * side, side], [side, side])
    assert model["optimizer"]["init_args"] == {"lr": official["lr"], "weight_decay": 0.05}
    assert model["layer_decay"] == 0.95
    assert model["weights"] in HUB_FILES
    assert config["trainer"].get("gradient_clip_val") == official["clip"]
    assert config["trainer"]["max_steps"] == official["steps"]


def test_multi_scale_sizes_are_the_official_ones():
    (recipe,) = (path for path in RECIPES if path.stem.endswith("_ms"))
    transform = parts_of(recipe)[1].eval_transform
    assert transform.scales == [(4 * side, side) for side in (768, 832, 896, 960, 1024)]
    assert transform.flipped == [False, True] * 5
