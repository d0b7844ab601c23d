"""The Triton kernels in Triton's interpreter, on the CPU, against the oracle."""

import importlib.util

import pytest
import torch
from dcnv3_cases import ROOT, make_problem, run_python
from gpu_cases import CASES, FEW, check, run

pytest.importorskip("triton")

from triton_operator import dcnv3_triton

from src.ops.triton import launch


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """A second copy of the kernels, made for the interpreter, in place of the first."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    path = ROOT / "src/ops/triton/kernels.py"
    spec = importlib.util.spec_from_file_location("interpreted_kernels", path)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    monkeypatch.setattr(launch, "kernels", kernels)
    # Larger blocks than on a device: the interpreter takes the same time for any number of rows.
    monkeypatch.setattr(launch, "MAX_ROWS", 128)
    monkeypatch.setattr(launch, "THREADS", 1024)


def deterministic(*tensors, **kwargs):
    return dcnv3_triton(*tensors, deterministic=True, **kwargs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in CASES]
)
def test_float64(name):
    check(dcnv3_triton, name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side_dtype", [None, torch.float32])
@pytest.mark.parametrize("name", ["channels_16", "channels_20", "views", "random_5"])
def test_other_types(name, dtype, side_dtype):
    check(dcnv3_triton, name, dtype, side_dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[:12])
def test_deterministic(name):
    check(deterministic, name)


def test_deterministic_means_the_same_bits_in_any_order(monkeypatch):
    """Smaller programs add in another order, which floats notice."""
    problem = make_problem(n=1, height=4, width=4, groups=1, offset_std=0.4, dtype=torch.float32)
    grads = {operator: [] for operator in (deterministic, dcnv3_triton)}
    for rows in (16, 4):
        monkeypatch.setattr(launch, "MAX_ROWS", rows)
        for operator, results in grads.items():
            results.append(run(operator, problem)[1])
    assert torch.equal(*grads[deterministic])
    assert not torch.equal(*grads[dcnv3_triton])


@pytest.mark.parametrize("rows", [2**31 - 128, 2**31])
def test_wide_row_numbers_are_chosen_by_size(rows):
    assert launch._is_wide(rows) == (rows >= 2**31 - launch.MAX_ROWS)


def test_graphs_hold_kernel_launches():
    """torch.compile looks into the operator: no device is needed to trace it."""
    code = """
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from src.ops import dcnv3
from src.ops._arguments import make_window

WINDOW = make_window(2, 3, 1, 1, 1, 1.0, remove_center=False, mask_softmax=True)
graphs = []

def keep(graph, inputs):
    graphs.append(graph)
    return graph

def forward(x, offset, mask):
    return dcnv3(x, offset, mask, groups=2, mask_softmax=True).square()

def backward(x, offset, mask):
    operator = torch.ops.internimage.dcnv3_triton_backward.default
    return operator(x, x, offset, mask, *WINDOW, (True, True, True))

with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
    x = torch.empty(2, 5, 7, 16, device="cuda", dtype=torch.bfloat16)
    packed = torch.empty(2, 5, 7, 54, device="cuda", dtype=torch.bfloat16)
    for function in (forward, backward):
        tensors = x, *packed.split([36, 18], dim=-1)
        results = torch.compile(function, fullgraph=True, backend=aot_autograd(keep))(*tensors)
    assert [t.shape for t in results] == [t.shape for t in tensors]
    assert {t.dtype for t in results} == {torch.bfloat16}
targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
launches = [target for target in targets if "triton" in target]
assert launches == ["triton_kernel_wrapper_functional"] * 2, launches
"""
    result = run_python(code, INTERNIMAGE_OPS="triton")
    assert result.returncode == 0, result.stderr[-3000:]
