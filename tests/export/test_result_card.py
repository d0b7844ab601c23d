"""``EXPORT.md`` of a file from image to result."""

from pathlib import Path

import pytest

from src.export.description import Description
from src.export.package import with_weights
from src.export.result_card import result_card
from src.models.graphs import ClassResult, RegionResult

COLOURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def card(result, settings, folder: Path, *, inside=False):
    path = folder / "model.onnx"
    path.write_bytes(bytes(2000))
    description = Description("task", ["a", "b"], {**COLOURS, **settings})
    return result_card(result, with_weights([path]), description, inside=inside, masks="box")


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_the_script_prepares_images_as_the_recipe(filter_, tmp_path):
    settings = {"image_size": 96, "crop_pct": 0.9, "interpolation": filter_}
    text = card(ClassResult(), settings, tmp_path)
    assert f"Image.{filter_.upper()})" in text
    assert "round((side - 96) / 2)" in text
    assert "--optShapes=image:1x3x96x96" in text


def test_masks_have_the_threshold_of_the_network(tmp_path):
    result = RegionResult(1000, 1000, 0.7, ((0.1, 0.1, 0.2, 0.2),), 0.05, 0.5, 100, 0.4, 32, 3)
    text = card(result, {"image_scale": [200, 128]}, tmp_path, inside=True)
    assert "mask > 0.4" in text
    assert "trtexec" not in text
    assert "--preprocessing outside" in text


def test_large_weights_are_listed(tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(bytes(3_000_000))
    text = card(ClassResult(), {"image_size": 96}, tmp_path)
    assert "- `model.onnx` (2.0 kB)\n- `model.onnx.data` (3.0 MB)\n" in text
