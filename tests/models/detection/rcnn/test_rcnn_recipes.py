"""The ten published recipes have the parameters of the official code, name by name."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml

from src.models import InternImageBackbone
from src.models.detection import CascadeMaskRCNN, MaskRCNN
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
KINDS = {"MaskRCNN": MaskRCNN, "CascadeMaskRCNN": CascadeMaskRCNN}


@pytest.fixture(scope="module")
def manifest():
    return json.loads(gzip.decompress(MANIFEST.read_bytes()))


def official_shapes(manifest, recipe):
    entry = manifest["detection"][f"coco/{recipe}"]
    extra = entry["extra"]
    if isinstance(extra, str):
        extra = manifest["detection"][extra.removeprefix("same as detection/")]["extra"]
    backbone = manifest["backbone_detseg"][entry["backbone_variant"]]
    return {f"backbone.{name}": shape for name, shape in backbone.items()} | extra


@pytest.mark.parametrize("recipe", RECIPES)
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
    shapes = {names[key]: list(value.shape) for key, value in detector.state_dict().items()}
    assert shapes == official_shapes(manifest, recipe)
    count = sum(parameter.numel() for parameter in detector.parameters())
    assert count == PARAMETERS[recipe.split("_fpn")[0]]
