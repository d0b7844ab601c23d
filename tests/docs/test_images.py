"""Images of the documentation are large enough and used; only correct predictions are shown."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.toy.scenes import Scene, SceneObject
from src.inference import Classification, Detection, Segmentation
from src.metrics.coco_results import to_results
from src.types import Detections

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "docs" / "images").glob("*"))


def script():
    spec = importlib.util.spec_from_file_location("make_images", ROOT / "docs" / "make_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_are_used_and_large_enough(path):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    used = {name for page in pages for name in re.findall(r"images/([\w.]+)\)", page.read_text())}
    assert path.name in used
    assert Image.open(path).width >= 440
    assert path.stat().st_size < 600_000


def test_only_correct_predictions_are_shown():
    is_correct = script().is_correct
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    scene = Scene(np.zeros((40, 40, 3), np.uint8), (SceneObject("ring", mask, (10, 10, 30, 30)),))

    def detection(label, boxes=1):
        found = Detections(
            torch.tensor([[10.0, 10, 30, 30]] * boxes),
            torch.full((boxes,), 0.9),
            torch.full((boxes,), label),
            torch.from_numpy(mask)[None].repeat(boxes, 1, 1),
        )
        names = ["ring", "star"]
        return Detection(scene.image, names, True, (40, 40), to_results(found, 1), True)

    assert is_correct(detection(0), scene)
    assert not is_correct(detection(1), scene)
    assert not is_correct(detection(0, boxes=2), scene)

    def segmentation(wrong):
        label_map = torch.from_numpy(mask.astype(np.uint8))
        label_map[:wrong] = 2
        names = ["background", "ring", "star"]
        return Segmentation(scene.image, names, False, label_map, [(0, 0, 0)] * 3)

    assert is_correct(segmentation(0), scene)
    assert not is_correct(segmentation(2), scene)

    def classification(score):
        labels, scores = torch.tensor([0, 1]), torch.tensor([score, 1 - score])
        return Classification(scene.image, ["ring", "star"], True, labels, scores)

    assert is_correct(classification(0.95), scene)
    assert not is_correct(classification(0.6), scene)
