"""The operator compared with results of the official code (tests/fixtures/dcnv3_op).

Bounds: see ``tests/official.py``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from src.ops import dcnv3, dcnv3_grid_sample, dcnv3_reference
from tests.official import FACTOR, close

FIXTURES = Path(__file__).parents[1] / "fixtures"
CASES = json.loads((FIXTURES / "dcnv3_op.json").read_text())["cases"]


@pytest.fixture(scope="module")
def arrays():
    with np.load(FIXTURES / "dcnv3_op.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def window(case):
    pairs = {
        name: (case[f"{key}_h"], case[f"{key}_w"])
        for name, key in (
            ("kernel_size", "kernel"),
            ("stride", "stride"),
            ("padding", "pad"),
            ("dilation", "dilation"),
        )
    }
    return {
        "groups": case["group"],
        "offset_scale": case["offset_scale"],
        "remove_center": bool(case["remove_center"]),
        **pairs,
    }


def compute(operator, arrays, name, dtype):
    tensors = [
        arrays[f"{name}/{key}"].to(dtype, copy=True).requires_grad_()
        for key in ("input", "offset", "mask")
    ]
    output = operator(*tensors, **window(CASES[name]))
    grads = torch.autograd.grad(output, tensors, arrays[f"{name}/grad_output"].to(dtype))
    names = ("output", "grad_input", "grad_offset", "grad_mask")
    return dict(zip(names, (output.detach(), *grads), strict=True))


def expected(arrays, name, key):
    # At integer positions the derivative of the CUDA kernel is one-sided; the fixture has it under
    # another name.
    return arrays.get(f"{name}/{key}", arrays.get(f"{name}/{key}_cuda_rule"))


def test_fixture_is_complete():
    assert len(CASES) == 18


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("operator", [dcnv3, dcnv3_reference])
def test_official_numbers(arrays, operator, name, dtype):
    distances = dict(CASES[name]["max_abs_diff_of_official_fp32_run"])
    if name == "zero_offset":  # rounding decides on which side of an integer the official result is
        del distances["grad_offset"]
    for key, value in compute(operator, arrays, name, dtype).items():
        assert value.dtype == dtype
        distance = distances.get(key, max(distances.values()))
        close(value, expected(arrays, name, key), FACTOR * distance, key)


@pytest.mark.parametrize("name", CASES)
def test_official_numbers_of_the_baseline(arrays, name):
    for key, value in compute(dcnv3_grid_sample, arrays, name, torch.float64).items():
        if name == "zero_offset" and key == "grad_offset":
            continue  # grid_sample uses the derivative of the other side at integers
        assert (value - expected(arrays, name, key)).abs().max() <= 1e-10, key
