"""Products of linear layers by oneDNN, against ``F.linear``."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from src.models.layers.linear import Linear, linear, linear_gelu, uses_onednn

SHAPES = [(4, 7, 7, 64), (5, 16), (16,), (2, 3, 0, 16), (1, 3, 5, 1)]

pytestmark = pytest.mark.skipif(not uses_onednn(torch.ones(1)), reason="this PyTorch has no oneDNN")


def tensors(shape, width, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = shape, (width, shape[-1]), (width,)
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def gradients(function, inputs, upstream):
    out = function(*inputs)
    return out, *torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape):
    inputs = tensors(shape, 24)
    upstream = torch.randn(*shape[:-1], 24)
    got, want = (gradients(f, inputs, upstream) for f in (linear, F.linear))
    for result, expected in zip(got, want, strict=True):
        torch.testing.assert_close(result, expected)
        assert result.stride() == expected.stride()
    assert (type(got[0].grad_fn).__name__ == "_ProductBackward") == (got[0].numel() > 0)


def test_values_and_gradients_that_are_not_contiguous():
    x, weight, bias = tensors((6, 4, 8), 5)
    inputs = [x.detach().transpose(0, 1).requires_grad_(), weight, bias]
    for upstream in (torch.randn(6, 4, 5).transpose(0, 1), torch.ones(()).expand(4, 6, 5)):
        got, want = (gradients(f, inputs, upstream) for f in (linear, F.linear))
        for result, expected in zip(got, want, strict=True):
            torch.testing.assert_close(result, expected)


def test_second_derivative():
    inputs = tensors((3, 8), 4, torch.float32)

    def penalty(function):
        (grad,) = torch.autograd.grad(function(*inputs).sin().sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), inputs)

    for got, want in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(got, want)


def test_frozen_weight():
    layer = Linear(8, 4, init="xavier").requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))
    assert layer.weight.grad is None


@torch.no_grad()
def test_gelu():
    x, weight, bias = tensors((4, 7, 64), 24)
    torch.testing.assert_close(linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias)))


@torch.no_grad()
def test_gelu_under_autocast():
    inputs = tensors((4, 7, 64), 24)
    with torch.autocast("cpu", torch.bfloat16):
        if not uses_onednn(inputs[0]):
            pytest.skip("this CPU has no products of bfloat16")
        out = linear_gelu(*inputs)
    assert out.dtype == torch.bfloat16
    expected = F.gelu(F.linear(*(t.bfloat16().float() for t in inputs)))
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_compiled(shape, has_bias):
    torch._dynamo.reset()
    x, weight, bias = tensors(shape, 24)
    inputs = [x, weight, bias] if has_bias else [x, weight]
    upstream = torch.randn(*shape[:-1], 24)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    got, want = (gradients(f, inputs, upstream) for f in (compiled, F.linear))
    for result, expected in zip(got, want, strict=True):
        torch.testing.assert_close(result, expected)
        assert result.stride() == expected.stride()


def test_operator_of_compiled_code():
    operator = torch.ops.internimage.onednn_linear.default
    x, weight, bias = tensors((3, 4, 8), 5)
    opcheck(operator, (x, weight, bias))
    opcheck(operator, (x.detach().transpose(0, 1), weight, None))


def test_exported_code_has_no_operator():
    program = torch.export.export(Linear(8, 4, init="xavier"), (torch.randn(3, 8),), strict=True)
    assert "internimage" not in str(program.graph)


def test_other_precisions_and_transforms_use_pytorch():
    x, weight, bias = tensors((3, 8), 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
        assert compiled(x, weight, bias).dtype == torch.bfloat16
    assert linear(x.double(), weight.double()).dtype == torch.float64
    rows = torch.func.vmap(lambda row: linear(row, weight, bias))(x)
    torch.testing.assert_close(rows, F.linear(x, weight, bias))
