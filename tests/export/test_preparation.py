"""How images are prepared for files without preprocessing, in words and in Python."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.export.preparation import described, is_known, opened, prepared
from src.models.graphs import ClassResult, LabelMapResult, QueryResult, RegionResult, Result

COLOURS = {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 0.5]}
SCALE = {**COLOURS, "eval_scale": [200, 128]}
MASK_RCNN = RegionResult(1000, 1000, 0.7, ((0.1, 0.1, 0.2, 0.2),), 0.05, 0.5, 100, 0.4, 32, 3)


@pytest.mark.parametrize(
    ("result", "settings", "shape", "words"),
    [
        (
            ClassResult(),
            {**COLOURS, "image_size": 64, "crop_pct": 0.5},
            (1, 3, 64, 64),
            "shorter side to 128 pixels (bicubic, `image_size` divided by `crop_pct`), and crop 64",
        ),
        (LabelMapResult(), SCALE, (1, 3, 128, 192), "round both sides up to multiples of 32."),
        (QueryResult(100, None), SCALE, (1, 3, 128, 171), "at most 200 pixels and the shorter one"),  # type: ignore[arg-type]
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
    lines = ["import sys", "import numpy as np", "from PIL import Image", 'path = "photo.png"']
    found: dict[str, Any] = {}
    exec("\n".join([*lines, *opened(upright=False), *prepared(result, settings)]), found)
    image = found["image"]
    assert (image.shape, image.dtype) == (shape, np.float32)
    np.testing.assert_allclose(image[0, :, 60, 60], [1.0, -0.5, 0.4], atol=1e-6)
    if isinstance(result, RegionResult):
        assert found["width"] == 171
        assert not image[..., 171:].any()


def test_unknown_preprocessing_is_not_guessed() -> None:
    assert not is_known({})
    assert not is_known(COLOURS)
    assert described(ClassResult(), COLOURS).startswith("RGB, divided by 255")
