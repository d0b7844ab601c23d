"""The official recipes have the parameters of the official code, name by name."""

import gzip
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from src.models import InternImageBackbone
from src.models.detection import CascadeMaskRCNN, CascadeRCNN, MaskRCNN
from src.models.weights.names import official_names

ROOT = Path(__file__).parents[4]
MANIFEST = ROOT / "tests" / "fixtures" / "state_dict_manifests.json.gz"
PARAMETERS = {
    "mask_rcnn_internimage_t": 48_920_544,
    "mask_rcnn_internimage_s": 68_715_024,
    "mask_rcnn_internimage_b": 115_245_264,
    "cascade_internimage_l": 277_307_236,
    "cascade_internimage_xl": 387_448_974,
}
RECIPES = [f"{model}_fpn_{schedule}_coco" for model in PARAMETERS for schedule in ("1x", "3x")]
CROWD_HUMAN = "cascade_internimage_xl_fpn_3x_crowd_human"
KINDS = {
    "MaskRCNN": MaskRCNN,
    "CascadeMaskRCNN": CascadeMaskRCNN,
    "CascadeRCNN": partial(CascadeRCNN, 1),
}


@pytest.fixture(scope="module")
def manifest():
    return json.loads(gzip.decompress(MANIFEST.read_bytes()))


def official_shapes(manifest, recipe):
    dataset = "crowd_human" if recipe == CROWD_HUMAN else "coco"
    entry = manifest["detection"][f"{dataset}/{recipe}"]
    extra = entry["extra"]
    if isinstance(extra, str):
        extra = manifest["detection"][extra.removeprefix("same as detection/")]["extra"]
    backbone = manifest["backbone_detseg"][entry["backbone_variant"]]
    return {f"backbone.{name}": shape for name, shape in backbone.items()} | extra


@pytest.mark.parametrize("recipe", [*RECIPES, CROWD_HUMAN])
def test_names_shapes_and_number_of_parameters(recipe, manifest):
    config = yaml.safe_load((ROOT / "configs" / "detection" / f"{recipe}.yaml").read_text())
    network = config["model"]["init_args"]["network"]
    arguments = dict(network["init_args"])
    backbone = arguments.pop("backbone")["init_args"]
    with torch.device("meta"):
        detector = KINDS[network["class_path"]](
            backbone=lambda: InternImageBackbone(**backbone), **arguments
        )
    names = official_names(detector)
    assert len(set(names.values())) == len(names)  # a file can be read and written
    shapes = {names[key]: list(value.shape) for key, value in detector.state_dict().items()}
    assert shapes == official_shapes(manifest, recipe)
    count = sum(parameter.numel() for parameter in detector.parameters())
    expected = 374_369_277 if recipe == CROWD_HUMAN else PARAMETERS[recipe.split("_fpn")[0]]
    assert count == expected
