"""Differences between exported files and PyTorch."""

import math
from pathlib import Path

import pytest

from src.export.differences import Differences


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8.onnx"])
@pytest.mark.parametrize("values", [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0)])
def test_results_that_are_not_finite_fail(name, values):
    found = Differences()
    for value in values:
        found.add(Path(name), {"scores": value})
    assert not found.passed
    assert "ABOVE" in found.table()


@pytest.mark.parametrize(
    ("name", "value", "passed"),
    [("model.onnx", 1e-6, True), ("model.onnx", 0.1, False), ("model.int8.onnx", 0.1, True)],
)
def test_only_float32_files_have_limits(name, value, passed):
    found = Differences()
    found.add(Path(name), {"scores": value})
    assert found.passed == passed


def test_outputs_with_unusual_names_are_explained():
    found = Differences()
    found.add(Path("model.onnx"), {"scores": 0.0, "unmatched": 0.0, "boxes": 0.0})
    assert found.legend() == [
        "  boxes: in pixels of the image",
        "  unmatched: share of detections without a counterpart",
    ]


def test_results_of_predict_may_differ_more_than_a_check_says():
    found = Differences()
    found.add(Path("model.onnx"), {"prepared": 9e-3, "scores": 2.5e-7})
    (line,) = found.legend()
    assert line.endswith("image from that of predict; not part of the other rows")
