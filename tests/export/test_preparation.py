"""How images are prepared for files without preprocessing, in words and in Python."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.data.transforms.classification import EvalTransform as ClassificationTransform
from src.data.transforms.detection import DetectionEvalTransform
from src.data.transforms.segmentation import EvalTransform as SegmentationTransform
from src.export.differences import LIMITS
from src.export.preparation import RESIZED, described, is_known, prepared, reader
from src.models.graphs import ClassResult, LabelMapResult, QueryResult, RegionResult, Result

COLOURS = {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 0.5]}
SCALE = {**COLOURS, "eval_scale": [200, 128]}
MASK_RCNN = RegionResult(1000, 1000, 0.7, ((0.1, 0.1, 0.2, 0.2),), 0.05, 0.5, 100, 0.4, 32, 3)


def prepared_file(path: str, result: Result, settings: dict[str, Any]) -> dict[str, Any]:
    """Variables of the lines that prepare an image."""
    lines = ["import numpy as np", "from PIL import Image", RESIZED, reader(upright=False)]
    found: dict[str, Any] = {"path": path}
    exec("\n".join([*lines, "photo = read(path)", *prepared(result, settings)]), found)
    return found


@pytest.mark.parametrize(
    ("result", "settings", "shape", "words"),
    [
        (
            ClassResult(),
            {**COLOURS, "image_size": 64, "crop_pct": 0.5},
            (1, 3, 64, 64),
            "shorter side to 128 pixels (bicubic with antialiasing, as Pillow does it; ",
        ),
        (
            LabelMapResult(),
            SCALE,
            (1, 3, 128, 192),
            "Resize again, to sides rounded up to multiples of 32.",
        ),
        (QueryResult(100, None), SCALE, (1, 3, 128, 171), "(bilinear without antialiasing"),  # type: ignore[arg-type]
        (MASK_RCNN, SCALE, (1, 3, 128, 192), "Pad with zeros below and right to multiples of 32."),
    ],
)
def test_a_photo_is_prepared_as_described(
    result: Result,
    settings: dict[str, Any],
    shape: tuple[int, ...],
    words: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_known(settings)
    assert words in described(result, settings)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (400, 300), (255, 0, 51)).save("photo.png")
    found = prepared_file("photo.png", result, settings)
    image = found["image"]
    assert (image.shape, image.dtype) == (shape, np.float32)
    np.testing.assert_allclose(image[0, :, 60, 60], [1.0, -0.5, 0.4], atol=1e-6)
    if isinstance(result, RegionResult):
        assert found["width"] == 171
        assert not image[..., 171:].any()


@pytest.mark.parametrize("size", [(420, 300), (301, 403), (90, 130)])
@pytest.mark.parametrize(
    ("result", "settings", "transform"),
    [
        (ClassResult(), {"image_size": 64}, ClassificationTransform(64)),
        (
            ClassResult(),
            {"image_size": 64, "crop_pct": 0.9, "interpolation": "bilinear"},
            ClassificationTransform(64, interpolation="bilinear", crop_pct=0.9),
        ),
        (
            LabelMapResult(),
            {"image_scale": [200, 128]},
            SegmentationTransform(scale=(200, 128), size_divisor=32),
        ),
        (QueryResult(100, None), {"eval_scale": [200, 128]}, DetectionEvalTransform((200, 128))),  # type: ignore[arg-type]
        (MASK_RCNN, {"eval_scale": [200, 128]}, DetectionEvalTransform((200, 128))),
    ],
    ids=["bicubic", "bilinear", "segmentation", "DINO", "Mask R-CNN"],
)
def test_an_image_is_prepared_as_by_the_recipe(
    result: Result, settings: dict[str, Any], transform: Any, size: tuple[int, int], tmp_path: Any
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)  # fine details
    path = str(tmp_path / "photo.png")
    Image.fromarray(noise).save(path)
    found = prepared_file(path, result, {**COLOURS, **settings})["image"][0]
    view = transform(Image.open(path) if isinstance(result, ClassResult) else noise)
    expected = (view[0] if isinstance(view, list) else view).permute(1, 2, 0).numpy() / 255
    expected = ((expected - COLOURS["mean"]) / COLOURS["std"]).transpose(2, 0, 1)
    height, width = expected.shape[1:]
    assert np.abs(found[:, :height, :width] - expected).mean() <= LIMITS["prepared"]


def test_unknown_preprocessing_is_not_guessed() -> None:
    assert not is_known({})
    assert not is_known(COLOURS)
    assert described(ClassResult(), COLOURS).startswith("RGB, divided by 255")
