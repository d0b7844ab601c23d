"""LayerNorm, GELU, and depthwise convolution with both, on the CPU."""

import os
import subprocess
import sys

import fused_cases
import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from src.ops import fused
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


needs_kernels = pytest.mark.skipif(
    not fused.is_available(torch.ones(1)), reason="without the library, PyTorch's layers are used"
)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [*SHAPES, (301, 72), (5,)], ids=str)
def test_gradients(shape, dtype):
    fused_cases.check_norm(shape, dtype)
    fused_cases.check_bias_gelu(shape, dtype)


@needs_kernels
def test_slope_of_gelu_far_from_zero():
    x = torch.tensor([[1e20, -1e20, 9.0, -9.0, 0.0, float("nan")]], requires_grad=True)
    fused.bias_gelu(x, torch.zeros(6)).sum().backward()
    expected = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.5, float("nan")]])
    torch.testing.assert_close(x.grad, expected, equal_nan=True)


@needs_kernels
def test_gradients_do_not_depend_on_threads():
    grads = []
    threads = torch.get_num_threads()
    for count in (1, 3):
        x = torch.randn(2, 40, 40, 48, generator=torch.Generator().manual_seed(0))
        weight, bias = torch.ones(48, requires_grad=True), torch.zeros(48, requires_grad=True)
        torch.set_num_threads(count)
        try:
            out = fused.layer_norm_gelu(x, weight, bias, 1e-6)
            grads.append(torch.autograd.grad(out.square().sum(), [weight, bias]))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(one, several) for one, several in zip(*grads, strict=True))


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", fused_cases.OPTIONS)
def test_step_of_a_network(name, dtype):
    fused_cases.check_network(name, dtype=dtype)


@needs_kernels
def test_schemas():
    fused_cases.check_schemas()


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 5, 6, 40), (5,)], ids=str)
def test_gradients_of_compiled_code(shape, dtype, monkeypatch):
    """The same checks as of eager functions, with the operators that compiled code calls."""
    torch._dynamo.reset()
    for name in ("layer_norm_gelu", "layer_norm_fork", "bias_gelu"):
        compiled = torch.compile(getattr(fused, name), backend="aot_eager", fullgraph=True)
        monkeypatch.setattr(fused, name, compiled)
    fused_cases.check_norm(shape, dtype)
    fused_cases.check_bias_gelu(shape, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_of_compiled_code(dtype):
    x = torch.randn(3, 4, 8, dtype=dtype, requires_grad=True)
    weight, bias = (torch.randn(8, requires_grad=True) for _ in range(2))
    opcheck(torch.ops.internimage.compiled_layer_norm.default, (x, weight, bias, 1e-6, True))
    opcheck(torch.ops.internimage.compiled_bias_gelu.default, (x, bias))


def seen_by(transform):
    """What `is_available` returns within transformed code."""
    seen = []

    def function(x):
        seen.append(fused.is_available(x))
        return x + 1

    transform(function)(torch.ones(1))
    return seen


def test_other_dtypes_and_exported_code_use_pytorch():
    assert not fused.is_available(torch.ones(1, dtype=torch.float64))
    assert not fused.is_available(torch.ones(1, dtype=torch.float16))
    assert seen_by(torch.func.vmap) == [False]

    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1 if fused.is_available(x) else x + 2

    program = torch.export.export(Module(), (torch.ones(1),), strict=True)
    assert program.module()(torch.ones(1)) == 3


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
        "not every and not unsupported and not network",  # these compare kernels
        __file__,
    ]
    subprocess.run(command, env={**os.environ, name: value}, check=True)
