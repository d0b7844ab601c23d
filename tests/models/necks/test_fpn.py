"""The feature pyramid with norms (``FPN_vitdet``) computes what the official one computes.

Bounds: see ``tests/official.py``. That without norms is part of ``test_rcnn_numbers.py``.
"""

import math

import numpy as np
import pytest
import torch

from src.models.necks.fpn import FPN
from tests.models.conftest import load_run, name_noise, name_weight

WIDTHS, SIZES = (8, 16, 24, 32), ((16, 20), (8, 10), (4, 5), (2, 3))


def noise(name, shape, dtype, scale=1.0):
    values = scale * name_noise(f"flash_fpn_vitdet:{name}", math.prod(shape)).reshape(shape)
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_official_numbers(dtype):
    run = load_run("flash_fpn_vitdet")
    neck = FPN(WIDTHS, 32, norm=True)
    neck.load_state_dict(
        {name: name_weight(name, shape) for name, shape, _ in run.spec["state_dict"]}
    )
    neck.to(dtype)
    features = [
        noise(f"x{i}", (2, width, *size), dtype, 1.5).requires_grad_()
        for i, (width, size) in enumerate(zip(WIDTHS, SIZES, strict=True))
    ]
    pyramid = neck(features)
    assert len(pyramid) == 5
    for i, level in enumerate(pyramid):
        run.numbers.check(level, f"out{i}")
    sum((x * noise(f"g{i}", x.shape, dtype)).sum() for i, x in enumerate(pyramid)).backward()
    gradients = {name: p.grad for name, p in neck.named_parameters()}
    run.numbers.check_gradients(gradients | {f"x{i}": x.grad for i, x in enumerate(features)})
    run.numbers.check_gradient_norms(gradients, run.spec["param_order"])
