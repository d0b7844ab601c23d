"""Kernels for training linear layers on a CPU, against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from src.models.internimage.layers import MLP
from src.ops import cpu_linear

pytestmark = pytest.mark.skipif(
    not cpu_linear.HAS_KERNELS, reason="the library has no kernels for this processor"
)

# Rows of less than a tile (14), of several tiles, of several blocks (112) and of two parts (448).
ROWS = [0, 1, 13, 28, 115, 500]
# Widths with half a panel (16 of 32 columns), and with last tiles of 2 to 12 channels.
WIDTHS = [(16, 32), (32, 48), (64, 256), (112, 80), (80, 320)]


def tensors(rows, channels, hidden):
    torch.manual_seed(rows)
    shapes = (rows, channels), (hidden, channels), (hidden,), (channels, hidden), (channels,)
    scales = 1, channels**-0.5, 1, hidden**-0.5, 1
    return [(torch.randn(s) * f).requires_grad_() for s, f in zip(shapes, scales, strict=True)]


def plain(x, fc1, bias1, fc2, bias2):
    return F.linear(F.gelu(F.linear(x, fc1, bias1)), fc2, bias2)


def with_gradients(function, inputs, upstream):
    out = function(*inputs)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    return out, *torch.autograd.grad(out, wanted, upstream)


def in_float64(inputs):
    return [
        None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in inputs
    ]


def assert_equals_float64(function, inputs, upstream):
    got = with_gradients(function, inputs, upstream)
    want = with_gradients(plain, in_float64(inputs), upstream.double())
    for result, expected in zip(got, want, strict=True):
        scale = expected.abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5 * scale)
        assert result.is_contiguous()


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients_of_an_mlp(rows, widths):
    inputs = tensors(rows, *widths)
    assert cpu_linear.is_available(inputs[0], widths[1])
    assert_equals_float64(cpu_linear.mlp, inputs, torch.randn_like(inputs[0]))


def test_without_second_bias_and_with_inputs_that_are_not_contiguous():
    x, fc1, bias1, fc2, _ = tensors(30, 32, 64)
    x = x.detach().view(5, 6, 32).transpose(0, 1).requires_grad_()
    fc1, fc2 = (t.detach().t().contiguous().t().requires_grad_() for t in (fc1, fc2))
    upstream = torch.ones(()).expand(6, 5, 32)
    got = with_gradients(cpu_linear.mlp, [x, fc1, bias1, fc2, None], upstream)
    want = with_gradients(plain, [x, fc1, bias1, fc2, None], upstream)
    for result, expected in zip(got, want, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [[0], [1], [2, 4], [0, 3], [1, 2, 3, 4]], ids=str)
def test_frozen_inputs_have_no_gradient(trained):
    inputs = tensors(50, 32, 64)
    for i, tensor in enumerate(inputs):
        tensor.requires_grad_(i in trained)
    assert_equals_float64(cpu_linear.mlp, inputs, torch.randn_like(inputs[0]))


def test_large_values_and_nan():
    inputs = tensors(20, 16, 32)
    x = inputs[0].detach()
    x[0] = 1e4
    x[1, 3] = float("nan")
    out = cpu_linear.mlp(x.requires_grad_(), *inputs[1:])
    (grad,) = torch.autograd.grad(out.sum(), x)
    for result in (out, grad):
        assert result[1].isnan().all()
        assert result[[0, *range(2, 20)]].isfinite().all()
    torch.testing.assert_close(out[0], plain(*inputs)[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("out", [1, 5, 14, 27, 108, 200])
@pytest.mark.parametrize("rows", [1, 31, 449, 1000])
def test_gradient_of_a_weight(rows, out):
    grad, x = torch.randn(rows, out), torch.randn(rows, 48)
    expected = grad.double().t() @ x.double()
    got = cpu_linear.weight_gradient(grad, x)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = tensors(1000, 64, 256)
    upstream = torch.randn(1000, 64)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(with_gradients(cpu_linear.mlp, inputs, upstream))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


def test_compiled_and_registered():
    torch._dynamo.reset()
    inputs = tensors(40, 32, 64)
    opcheck(torch.ops.internimage.cpu_mlp.default, inputs)
    opcheck(
        torch.ops.internimage.cpu_weight_gradient.default, (torch.randn(9, 5), torch.randn(9, 16))
    )
    compiled = torch.compile(cpu_linear.mlp, backend="aot_eager", fullgraph=True)
    assert_equals_float64(compiled, inputs, torch.randn_like(inputs[0]))


def test_second_derivative_is_refused():
    inputs = tensors(5, 16, 32)
    (grad,) = torch.autograd.grad(cpu_linear.mlp(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


class TestMLP:
    """The layer of a block takes the operator where it may."""

    @staticmethod
    def operator_of(mlp, x):
        return type(mlp(x).grad_fn).__name__

    def test_training(self):
        mlp, x = MLP(32, 64), torch.randn(2, 3, 3, 32)
        assert "cpu_mlp" in self.operator_of(mlp, x)
        out = mlp(x)
        torch.testing.assert_close(out, mlp.fc2(F.gelu(mlp.fc1(x))), rtol=1e-4, atol=1e-6)
        out.sum().backward()
        assert all(p.grad is not None for p in mlp.parameters())

    def test_dropout_hooks_other_layers_and_precisions(self):
        x = torch.randn(4, 32)
        assert "cpu_mlp" not in self.operator_of(MLP(32, 64, drop_rate=0.5), x)
        assert "cpu_mlp" in self.operator_of(MLP(32, 64, drop_rate=0.5).eval(), x)
        assert "cpu_mlp" not in self.operator_of(MLP(32, 64).double(), x.double())
        assert "cpu_mlp" not in self.operator_of(MLP(24, 40), torch.randn(4, 24))
        with torch.autocast("cpu", torch.bfloat16):
            assert "cpu_mlp" not in self.operator_of(MLP(32, 64), x)
        mlp = MLP(32, 64)
        seen = []
        mlp.act.register_forward_hook(lambda *_: seen.append(True))
        assert "cpu_mlp" not in self.operator_of(mlp, x)
        assert seen
        mlp = MLP(32, 64)
        mlp.fc1 = torch.nn.Linear(32, 64)
        assert "cpu_mlp" not in self.operator_of(mlp, x)
