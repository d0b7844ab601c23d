"""LayerNorm in the autocast dtype, and GroupNorm of channels-last feature maps."""

import pytest
import torch

from src.models import InternImage
from src.models.layers.norm import GroupNorm, LayerNorm
from src.models.layers.precision import parameters_cast


def autocast(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.fixture
def norm():
    torch.manual_seed(0)
    norm = LayerNorm(32)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_without_autocast(norm, dtype):
    x = torch.randn(2, 3, 32, dtype=dtype)
    norm = norm.to(dtype)
    expected = torch.nn.functional.layer_norm(x, (32,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x), expected, rtol=2e-6, atol=2e-6)


def test_writes_16_bits_and_computes_in_32(norm):
    x = (100 + torch.randn(64, 32)).bfloat16()
    x.requires_grad_()
    with autocast():
        out = norm(x)
    assert out.dtype == torch.bfloat16
    exact = torch.nn.functional.layer_norm(x.float(), (32,), norm.weight, norm.bias, norm.eps)
    # The only rounding is that of the result (2^-9), and that of a fused multiply-add.
    torch.testing.assert_close(out.float(), exact, rtol=2**-8, atol=1e-4)
    out.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_many_rows_are_summed_in_32_bits(norm, dtype):
    x = torch.randn(3, 20_000, 32).to(dtype).requires_grad_()
    upstream = (0.1 + torch.randn_like(x)).to(dtype)
    with torch.autocast("cpu", dtype):
        norm(x).backward(upstream)
    leaves = [t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias)]
    exact = torch.nn.functional.layer_norm(leaves[0], (32,), *leaves[1:], norm.eps)
    exact.backward(upstream.double())
    for got, leaf in zip((x, norm.weight, norm.bias), leaves, strict=True):
        error = (got.grad.double() - leaf.grad).norm() / leaf.grad.norm()
        assert error < 5e-3


@pytest.mark.parametrize(("kept", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_float32_output_can_be_kept(kept, dtype):
    network = InternImage(5, channels=8, depths=[1, 1], groups=[1, 2], float32_norms=kept).eval()
    dtypes = []
    for module in network.modules():
        if isinstance(module, LayerNorm):
            module.register_forward_hook(lambda m, inputs, out: dtypes.append(out.dtype))
    with autocast(), torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    assert set(dtypes) == {dtype}


def test_parameters_are_cast_together(norm):
    layer = torch.nn.Sequential(torch.nn.Linear(32, 32), norm)
    x = torch.randn(4, 32)
    names = list(layer.state_dict())
    with autocast(), parameters_cast(layer, torch.bfloat16):
        assert {p.dtype for p in layer.parameters()} | {norm.weight.dtype} == {torch.bfloat16}
        out = layer(x)
    out.float().square().sum().backward()
    got = [p.grad for p in layer.parameters()]
    assert {g.dtype for g in got} == {torch.float32}
    assert list(layer.state_dict()) == names
    layer.zero_grad()
    with autocast():
        out = layer(x)
    out.float().square().sum().backward()
    for grad, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(
            grad, parameter.grad, rtol=2e-2, atol=2e-2 * float(grad.abs().max())
        )


def test_transforms_of_functions(norm):
    x = torch.randn(4, 32)

    def loss(x):
        with autocast():
            return norm(x).float().square().sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), leaf.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_of_large_means_is_precise(memory_format):
    torch.manual_seed(0)
    x = torch.randn(1, 64, 60, 80) + 10 * torch.randn(1, 64, 1, 1)
    norm = GroupNorm(32, 64)
    exact = torch.nn.functional.group_norm(x.double(), 32)
    found = norm(x.to(memory_format=memory_format)).double()
    torch.testing.assert_close(found, exact, rtol=0, atol=5e-6)
