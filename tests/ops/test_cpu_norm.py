"""LayerNorm and depthwise convolution with LayerNorm and GELU, for inference on the CPU."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from src.ops.cpu_norm import depthwise_norm_gelu, layer_norm

SHAPES = [(2, 5, 3, 20), (1, 7, 7, 64), (1, 1, 2, 7), (1, 9, 4, 200), (0, 3, 3, 16)]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def tensors(shape, dtype):
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 + 1).to(dtype)
    return x, *torch.randn(3, shape[-1])


def norm64(x, weight, bias):
    return F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_layer_norm(shape, dtype, gelu):
    x, _, weight, bias = tensors(shape, dtype)
    out = layer_norm(x, weight, bias, 1e-6, gelu=gelu)
    expected = norm64(x, weight, bias)
    expected = F.gelu(expected) if gelu else expected
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 3, 5])
def test_depthwise_norm_gelu(shape, dtype, side):
    x, bias, norm_weight, norm_bias = tensors(shape, dtype)
    kernels = torch.randn(side, side, shape[-1]) / side
    out = depthwise_norm_gelu(x, kernels, bias, norm_weight, norm_bias, 1e-6)
    expected = F.conv2d(
        x.double().permute(0, 3, 1, 2),
        kernels.double().permute(2, 0, 1).unsqueeze(1),
        bias.double(),
        padding=side // 2,
        groups=shape[-1],
    ).permute(0, 2, 3, 1)
    expected = F.gelu(norm64(expected, norm_weight, norm_bias))
    assert out.dtype == dtype
    assert out.is_contiguous()
    # Rounding of the convolution grows where its values hardly differ.
    tolerance = {torch.float32: 3e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_special_values():
    weight, bias = torch.ones(16), torch.zeros(16)
    x = torch.zeros(3, 16)
    x[0, 3], x[1, 2] = float("nan"), float("inf")
    out = layer_norm(x, weight, bias, 1e-6, gelu=True)
    assert out[:2].isnan().all()
    assert out[2].eq(0).all()


@pytest.mark.parametrize("x", [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2).T])
def test_unsupported_values(x):
    with pytest.raises(RuntimeError):
        layer_norm(x, torch.ones(3), torch.zeros(3), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    ["INTERNIMAGE_OPS=reference", "ATEN_CPU_CAPABILITY=default", "ATEN_CPU_CAPABILITY=avx2"],
)
def test_every_implementation(setting):
    name, value = setting.split("=")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "not every and not unsupported",
        __file__,
    ]
    subprocess.run(command, env={**os.environ, name: value}, check=True)
