"""Recipes of Cityscapes, Mapillary, Pascal Context and NYU: the official names, shapes, settings.

All networks are built on no device; a published file is replaced by one of its names and shapes.
"""

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from src.data.datamodules.base import BaseDataModule
from src.hub import Pretrained
from src.models import InternImageBackbone, SegFormerHead
from src.models.segmentation import Segmentor
from src.models.weights import load_official, to_official
from src.models.weights.files import HUB_FILES
from src.models.weights.names import official_names
from src.tasks import SegmentationTask

ROOT = Path(__file__).parents[2]
MANIFESTS = json.loads(
    gzip.decompress((ROOT / "tests/fixtures/state_dict_manifests.json.gz").read_bytes())
)
GROUPS = {"cityscapes": 19, "mapillary": 19, "pascal_context": 59, "nyu_depth_v2": 40}
NAMES = {
    key.partition("/")[2]: key
    for key in MANIFESTS["segmentation"]
    if key.partition("/")[0] in GROUPS
}
every_recipe = pytest.mark.parametrize("name", NAMES)
FINE, SMALL_IMAGES = {"image_scale": [2048, 1024], "size_divisor": 1}, {"crop_size": [480, 480]}
OUTDOOR = {"cls": "CityscapesDataModule", "batch": 2, "crop_size": [512, 1024]} | FINE
MAPILLARY = OUTDOOR | {"cls": "MapillaryDataModule", "steps": 80_000, "lr": 2e-5, "clip": 0.1}
LARGE = {"lr": 2e-5, "decay": 0.94, "clip": 0.1, "steps": 160_000}
HUGE = {"decay": 0.95, "size_divisor": 32, "drop_path": 0.5}


def settings_of(name: str) -> dict[str, Any]:
    """Settings of the official configuration."""
    net, _, size, *_ = name.split("_")
    small = {"t": 0.2, "s": 0.3, "b": 0.4}
    found = {"drop_path": small.get(size, 0.4), "clip": None, "decay": None, "steps": 160_000}
    found |= {"lr": 6e-5, "every": 16_000, "coarse": None, "ratio_range": None, "window": None}
    found |= {"eval_scale": None}
    if size not in small:
        found |= LARGE
        found["init"] = f"internimage_{size}_22k_192to384"
    else:
        found["init"] = f"internimage_{size}_1k_224"
    found |= MAPILLARY | {"decay": 0.94} if name.endswith("_mapillary") else OUTDOOR
    if name.endswith("_mapillary"):
        found |= {"every": 8000, "ratio_range": [0.5, 1.0]}
    if "mapillary2" in name:
        found |= {"coarse": "refined", "every": 4000}
        found["init"] = f"segformer_internimage_{size}_512x1024_80k_mapillary"
    if net == "mask2former":
        found |= HUGE | {"every": 2000, "init": "internimage_h_jointto22k_384", "lr": 2e-5}
        side = int(name.split("_")[3].split("x")[0])
        found |= {"crop_size": [side, side], "ratio_range": None}
        if side == 480:
            found |= {"batch": 1, "steps": 40_000, "clip": None}
            nyu = {"cls": "NYUDepthV2DataModule", "image_scale": [2048, 512]}
            pascal = {"cls": "PascalContextDataModule", "image_scale": [520, 520]}
            is_nyu = name.endswith("_nyu")
            found |= nyu if is_nyu else pascal
            found["eval_scale"] = [640, 480] if is_nyu else [4096, 520]
        else:
            found |= {"steps": 80_000, "window": ([side, side], [512, 512])}
        if side == 1024:
            found |= {"lr": 1e-5, "init": "mask2former_internimage_h_896x896_80k_mapillary"}
    return found


def recipe_of(name: str) -> Path:
    return ROOT / "configs/segmentation" / f"{name}.yaml"


def classes_of(name: str) -> int:
    return GROUPS[NAMES[name].partition("/")[0]]


def official_shapes(name: str) -> dict[str, list[int]]:
    networks = MANIFESTS["segmentation"]
    manifest = networks[NAMES[name]]
    extra = manifest["extra"]
    if isinstance(extra, str):
        extra = networks[extra.removeprefix("same as segmentation/")]["extra"]
    backbone = MANIFESTS["backbone_detseg"][manifest["backbone_variant"]]
    return {f"backbone.{key}": shape for key, shape in backbone.items()} | extra


@cache
def task_of(name: str) -> Any:
    """The task of a recipe with its network on no device."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationTask, "model")
    model = yaml.safe_load(recipe_of(name).read_text())["model"]
    model["init_args"] |= {"num_classes": classes_of(name), "weights": None}
    task = parser.instantiate_classes(parser.parse_object({"model": model})).model
    with torch.device("meta"):
        task.configure_model()
    return task


def test_there_are_seventeen_published_files() -> None:
    assert len(NAMES) == 17
    assert NAMES.keys() <= set(HUB_FILES)


@every_recipe
def test_network_is_the_official_one(name: str) -> None:
    network = task_of(name).network
    names = official_names(network)
    assert len(set(names.values())) == len(names)  # a file can be read and written
    shapes = {names[key]: list(value.shape) for key, value in network.state_dict().items()}
    assert shapes == official_shapes(name)
    manifest = MANIFESTS["segmentation"][NAMES[name]]
    assert sum(p.numel() for p in network.parameters()) == manifest["params"]
    page = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {len(shapes)} | {manifest['params']:,} |" in page


@every_recipe
def test_settings_are_the_official_ones(name: str) -> None:
    config = yaml.safe_load(recipe_of(name).read_text())
    model, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]
    given = data["init_args"]
    found = {
        "drop_path": model["network"]["init_args"]["backbone"]["init_args"]["drop_path_rate"],
        "lr": model["optimizer"]["init_args"]["lr"],
        "decay": model.get("layer_decay"),
        "clip": trainer.get("gradient_clip_val"),
        "init": model["weights"],
        "steps": trainer["max_steps"],
        "every": trainer["val_check_interval"],
        "cls": data["class_path"],
        "batch": given["batch_size"],
        "window": (model["window_size"], model["window_stride"])
        if "window_size" in model
        else None,
        "size_divisor": given.get("size_divisor", 32),
    }
    for key in ("image_scale", "eval_scale", "crop_size", "coarse", "ratio_range"):
        found[key] = given.get(key)
    assert found == settings_of(name)
    assert model["reference_batch_size"] == 16
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.05
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, "data")
    module = parser.instantiate_classes(parser.parse_object({"data": data})).data
    assert module.num_classes == len(module.palette) == classes_of(name)


FAST = {"upernet_internimage_t_512x1024_160k_cityscapes"}


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_published_file_by_name(name: str, tmp_path: Path) -> None:
    """A file with the official names and shapes in place of the download."""
    shapes = official_shapes(name)
    values = {key: zlib.crc32(key.encode()) / 2**32 for key in shapes}
    state = {
        key: torch.tensor(3) if "num_batches" in key else torch.full(shape, values[key])
        for key, shape in shapes.items()
    }
    torch.save({"state_dict": state}, tmp_path / f"{name}.pth")
    model = Pretrained.from_pretrained(tmp_path / f"{name}.pth")
    assert model.task == "segmentation"
    assert len(model.class_names) == classes_of(name)
    official = to_official(model.network)
    assert official.keys() == state.keys()
    for key, value in official.items():
        assert (value == state[key]).all(), key


def test_evaluation_size_and_colours_of_a_published_model(monkeypatch) -> None:
    class Report:
        fresh = ()

    monkeypatch.setattr("src.hub.parts.load_official", lambda network, source: Report())
    with torch.device("meta"):
        model = Pretrained.from_pretrained("mask2former_internimage_h_480_40k_nyu")
    assert model.preprocessing["image_scale"] == [640, 480]
    assert "eval_scale" not in model.preprocessing
    assert len(model.preprocessing["palette"]) == 40


TINY = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}


def test_another_head_keeps_its_initial_values() -> None:
    """UPerNet for Cityscapes starts from the SegFormer network for Mapillary."""

    def backbone():
        return InternImageBackbone(**TINY)

    pretrained = Segmentor(
        19, backbone, decode_head=SegFormerHead, auxiliary_head=None, num_outputs=150
    )
    upernet = Segmentor(19, backbone, num_outputs=150)
    before = upernet.decode_head.conv_seg.weight.clone()
    report = load_official(upernet, to_official(pretrained))
    heads = {key for key in upernet.state_dict() if "_head." in key}
    assert set(report.fresh) == heads
    assert torch.equal(upernet.decode_head.conv_seg.weight, before)
    for key, value in pretrained.backbone.state_dict().items():
        assert torch.equal(upernet.backbone.state_dict()[key], value)
