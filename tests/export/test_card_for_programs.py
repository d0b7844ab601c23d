"""``EXPORT.md`` for programs of users: what they do before and after the file."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from src.decoding import decode
from src.export.card import card
from src.export.description import Description
from src.export.result_card import result_section
from src.export.script import result_script
from src.models.detection.rcnn.postprocess import paste_masks
from src.models.graphs import ClassResult, RegionResult
from tests.export.test_result_card import COLOURS, MASK_RCNN


def described(result, folder, *, task="detection", names=("model.onnx", "predict.py"), **settings):
    """``EXPORT.md`` of a file that prepares images, without line breaks."""
    for name in names:
        (folder / name).touch()
    description = Description(task, ["a", "b"], {**COLOURS, **settings})
    section = result_section(result, description.preprocessing, inside=True, masks="box")
    paths = [folder / name for name in names]
    text = card(description, paths, result, [section], inside=True)
    return " ".join(text.split())


def test_the_orientation_is_left_to_the_program(tmp_path):
    text = described(MASK_RCNN, tmp_path, eval_scale=[200, 128])
    assert "do it first in your program: - Apply the EXIF orientation" in text
    assert "`ImageOps.exif_transpose(photo)`" in text
    text = described(ClassResult(), tmp_path, task="classification", image_size=96)
    assert "- Use the image as it is stored, without its EXIF orientation" in text
    assert "exif_transpose" not in text
    text = described(ClassResult(), tmp_path, task="classification", image_size=96, upright=True)
    assert "`ImageOps.exif_transpose(photo)`" in text


def test_the_function_to_copy_reads_images_of_16_bits(tmp_path):
    text = described(MASK_RCNN, tmp_path, eval_scale=[200, 128])
    (function, name) = re.search(
        r"function `(\w+)` of `([\w.]+)` does both; copy it", text
    ).groups()
    description = Description("detection", ["a", "b"], {**COLOURS, "eval_scale": [200, 128]})
    script = result_script(MASK_RCNN, description, inside=True, masks="box", library=None)
    assert name == "predict.py"
    lines = re.search(rf"^def {function}\(.*?(?=^\S)", script, re.MULTILINE | re.DOTALL).group()
    path = tmp_path / "deep.png"
    grey = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(path, exif=exif)
    imports = "import numpy as np\nfrom PIL import Image, ImageOps\n"
    exec(imports + lines, variables := {})
    found = variables[function](path)
    assert found.size == (6, 8)  # upright
    assert found == decode(path, upright=True)
    white = np.asarray(Image.open(path).convert("RGB")) == 255
    assert white.mean() > 0.9  # as the description warns


def test_without_a_script_there_is_no_function_to_copy(tmp_path):
    text = described(MASK_RCNN, tmp_path, names=["backbone.pt2"], eval_scale=[200, 128])
    assert "exif_transpose" in text
    assert "copy it" not in text


def pasting(threshold):
    """The function ``paste`` of the description of a detector."""
    result = RegionResult(1000, 1000, 0.7, ((0.1,) * 4,), 0.05, 0.5, 100, threshold, 32, 3)
    text = result_section(result, {**COLOURS, "eval_scale": [9, 9]}, inside=True, masks="box")
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    exec(code, variables := {"np": np})
    return variables["paste"]


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_masks_are_pasted_as_pretrained_does(threshold):
    """Boxes inside of the image, beyond its edges, and smaller than a pixel."""
    height, width = 120, 90
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 28, 28, generator=generator)
    low = torch.rand(40, 2, generator=generator) * torch.tensor([width, height])
    sides = torch.rand(40, 2, generator=generator).square() * 80 + 0.5
    boxes = torch.cat([low - 5, low - 5 + sides], dim=1)
    paste = pasting(threshold)
    found = np.stack(
        [
            paste(mask, box, height, width)
            for mask, box in zip(masks.numpy(), boxes.numpy(), strict=True)
        ]
    )
    expected = paste_masks(masks, boxes, (height, width), threshold).numpy()
    assert expected.any(axis=(1, 2)).mean() > 0.9
    assert (found != expected).sum() <= 2  # rounding at the threshold


def test_masks_of_the_whole_image_are_not_pasted(tmp_path):
    settings = {**COLOURS, "eval_scale": [200, 128]}
    assert "--masks image" in result_section(MASK_RCNN, settings, inside=True, masks="box")
    assert "paste" not in result_section(MASK_RCNN, settings, inside=True, masks="image")
