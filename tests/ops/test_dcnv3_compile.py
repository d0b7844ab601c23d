"""Schema, fake tensors, torch.compile and torch.export."""

import pytest
import torch
from dcnv3_cases import FLOAT32, assert_same, make_problem, run_python
from torch import nn
from torch.library import opcheck

from src.ops import dcnv3
from src.ops._arguments import make_window

OPS = torch.ops.internimage
WINDOW = make_window(2, 3, (1, 2), 1, 1, 1.5, remove_center=False, mask_softmax=True)


def row_views(problem):
    """Offset and mask as slices of one tensor, all with gradients."""
    packed = torch.cat((problem.offset, problem.mask), dim=-1)
    offset, mask = packed.split([problem.offset.shape[-1], problem.mask.shape[-1]], dim=-1)
    return problem.input.requires_grad_(), offset.requires_grad_(), mask.requires_grad_()


def small_problem(dtype=torch.float64):
    return make_problem(height=4, group_channels=3, stride=(1, 2), offset_scale=1.5, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    tensors = small_problem(dtype).tensors()
    opcheck(OPS.dcnv3.default, (*tensors, *WINDOW))


def test_opcheck_of_views():
    opcheck(OPS.dcnv3.default, (*row_views(small_problem()), *WINDOW))


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (True, False, True)])
def test_opcheck_of_the_backward(wanted):
    problem = small_problem()
    tensors = [t.detach() for t in row_views(problem)]
    grad = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    opcheck(OPS.dcnv3_backward.default, (grad, *tensors, *WINDOW, wanted))


@pytest.mark.slow
def test_opcheck_of_the_fallback():
    code = """
import torch
from torch.library import opcheck
from test_dcnv3_compile import OPS, WINDOW, row_views, small_problem
from src.ops import backends
assert backends()["cpu"].startswith("reference")
opcheck(OPS.dcnv3.default, (*row_views(small_problem()), *WINDOW))
tensors = [t.detach() for t in row_views(small_problem())]
grad = torch.randn(2, 4, 4, 6, dtype=torch.float64)
opcheck(OPS.dcnv3_backward.default, (grad, *tensors, *WINDOW, (True, False, True)))
"""
    result = run_python(code, INTERNIMAGE_OPS="reference")
    assert result.returncode == 0, result.stderr


def test_meta_tensors():
    problem = make_problem(stride=2, dtype=torch.bfloat16)
    tensors = [t.detach().to("meta") for t in problem.tensors()]
    output = dcnv3(*tensors, **problem.kwargs)
    assert output.shape == dcnv3(*problem.tensors(), **problem.kwargs).shape
    assert (output.device.type, output.dtype) == ("meta", torch.bfloat16)


class Layer(nn.Module):
    """The operator as a model uses it: one Linear for offsets and logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(16, 2 * 27)

    def forward(self, x):
        offset, mask = self.project(x).split([36, 18], dim=-1)
        return dcnv3(x, offset, mask, groups=2, mask_softmax=True)


@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [
        ("aot_eager", None),  # static first, then dynamic as sizes change
        pytest.param("inductor", False, marks=pytest.mark.slow),
        pytest.param("inductor", True, marks=pytest.mark.slow),
    ],
)
def test_compile_without_graph_breaks(backend, dynamic):
    torch._dynamo.reset()
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in (5, 6):
        x = torch.randn(2, size, 7, 16)
        results = []
        for module in (layer, compiled):
            leaf = x.clone().requires_grad_()
            output = module(leaf)
            grads = torch.autograd.grad(output.square().sum(), (leaf, *layer.parameters()))
            results.append((output.detach(), *grads))
        assert_same(*results, **FLOAT32)


def test_compile_under_autocast():
    torch._dynamo.reset()
    layer = Layer()

    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    x = torch.randn(1, 4, 4, 16)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, step(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    layer = Layer()
    x = torch.randn(2, 6, 7, 16)
    sizes = {0: torch.export.Dim("n"), 1: torch.export.Dim("h", min=2, max=64)}
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,), strict=strict)
        targets = [node.target for node in program.graph.nodes]
        assert OPS.dcnv3.default in targets
        other = torch.randn(3, 9, 7, 16)
        torch.testing.assert_close(program.module()(other), layer(other))
