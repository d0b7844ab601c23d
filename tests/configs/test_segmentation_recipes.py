"""Segmentation recipes: official names, shapes and parameter counts of all seven, on no device."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from src.data import ADE20KDataModule
from src.models.weights.names import official_names
from src.tasks import SegmentationTask

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "segmentation").glob("upernet_internimage_*_ade20k.yaml"))
MANIFESTS = ROOT / "tests" / "fixtures" / "state_dict_manifests.json.gz"
PARAMETERS = {
    "t_512": 59_077_148,
    "s_512": 79_866_956,
    "b_512": 128_387_852,
    "l_640": 255_600_606,
    "xl_640": 367_733_000,
    "h_896": 1_120_338_396,
    "g_896": 3_112_678_316,
}


def task_of(recipe: Path) -> SegmentationTask:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationTask, "model")
    model = yaml.safe_load(recipe.read_text())["model"]
    model["init_args"]["num_classes"] = 150
    return parser.instantiate_classes(parser.parse_object({"model": model})).model


@pytest.fixture(scope="module")
def manifests():
    return json.loads(gzip.decompress(MANIFESTS.read_bytes()))


def test_there_are_seven():
    assert len(RECIPES) == len(PARAMETERS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_network_is_the_official_one(recipe, manifests):
    task = task_of(recipe)
    with torch.device("meta"):
        network = task.network_factory(num_classes=150)
    manifest = manifests["segmentation"][f"ade20k/{recipe.stem}"]
    backbone = manifests["backbone_detseg"][manifest["backbone_variant"]]
    expected = {f"backbone.{name}": shape for name, shape in backbone.items()} | manifest["extra"]
    names = official_names(network)
    shapes = {names[name]: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == expected
    size = recipe.stem.removeprefix("upernet_internimage_").removesuffix("_160k_ade20k")
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[size] == manifest["params"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_schedule_and_data_are_the_official_ones(recipe):
    config = yaml.safe_load(recipe.read_text())
    side = int(recipe.stem.split("_")[3])
    large = side > 512
    data = config["data"]["init_args"]
    assert (data["image_scale"], data["crop_size"]) == ([4 * side, side], [side, side])
    ADE20KDataModule(**data)
    model = config["model"]["init_args"]
    assert model["optimizer"]["init_args"] == {"lr": 2e-5 if large else 6e-5, "weight_decay": 0.05}
    assert model.get("layer_decay") == {512: None, 640: 0.94, 896: 0.95}[side]
    assert config["trainer"].get("gradient_clip_val") == (0.1 if large else None)
    assert config["trainer"]["max_steps"] == 160_000
    assert config["trainer"]["sync_batchnorm"]
