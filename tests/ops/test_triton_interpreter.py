"""The Triton kernels in Triton's interpreter on the CPU, compared with the reference."""

import json
import os
import subprocess
import sys

import pytest
import torch
from dcnv3_cases import ROOT, make_problem, run_python
from gpu_cases import CASES, FEW, STAGES, additions_of_corners

pytest.importorskip("triton")

# The interpreter takes half a minute for 1024 points; loops over points are those of kernel_7.
NAMES = [name for name in CASES if name != "points_1024"]


@pytest.fixture(scope="module")
def interpreter():
    """Call a function of triton_interpreter.py in its process."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/ops/triton_interpreter.py")],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/ops'}",
            "PYTHONWARNINGS": "ignore",  # of NumPy, about the infinities of some cases
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def call(function, *arguments):
        print(json.dumps([function, arguments]), file=process.stdin, flush=True)
        problem = json.loads(process.stdout.readline())
        assert problem is None, problem

    yield call
    process.stdin.close()
    process.wait(timeout=30)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in NAMES]
)
def test_float64(interpreter, name):
    interpreter("check_case", name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in NAMES]
)
def test_packed_rows(interpreter, name):
    """Offsets and weights in the rows of DCNv4."""
    interpreter("check_packed", name)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("bfloat16",), ("float16", "float32")], ids=str)
@pytest.mark.parametrize("name", ["channels_16", "channels_20"])
def test_packed_rows_of_other_types(interpreter, name, arguments):
    interpreter("check_packed", name, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[:12])
def test_packed_rows_deterministic(interpreter, name):
    interpreter("check_packed", name, "float64", None, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "side_dtype"),
    [("float32", None), ("bfloat16", None), ("bfloat16", "float32"), ("float16", "float32")],
)
@pytest.mark.parametrize("name", ["channels_16", "channels_20", "views"])
def test_other_types(interpreter, name, dtype, side_dtype):
    interpreter("check_case", name, dtype, side_dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[:12])
def test_deterministic(interpreter, name):
    interpreter("check_case", name, "float64", None, True)


@pytest.mark.slow
def test_deterministic_results_do_not_depend_on_the_order(interpreter):
    interpreter("check_same_bits")


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("size", [1e-36, 1e30])
def test_sums_do_not_overflow(interpreter, size, is_deterministic):
    interpreter("check_sums", size, is_deterministic)


@pytest.mark.parametrize(("height", "width"), [(19, 22), (10, 12)], ids=["tiles", "whole_map"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_stay_where_they_are(interpreter, value, height, width):
    interpreter("check_not_finite", value, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("stage", STAGES)
def test_additions_to_global_memory(interpreter, stage, std):
    side, groups, channels = STAGES[stage]
    problem = make_problem(
        n=1, height=side, width=side, groups=groups, group_channels=channels,
        offset_std=std, dtype=torch.bfloat16, mask_softmax=True,
    )  # fmt: skip
    corners = additions_of_corners(problem, channels)
    least = 10**9 if side == 14 else {0.5: 8, 2.0: 8, 8.0: 1}[std]
    interpreter("check_additions", side, groups, channels, std, corners, least)


@pytest.mark.slow
def test_graphs_hold_kernel_launches():
    """torch.compile traces the kernel launches, which needs no device."""
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
        backend = aot_autograd(fw_compiler=keep)
        results = torch.compile(function, fullgraph=True, backend=backend)(*tensors)
assert [t.shape for t in results] == [t.shape for t in tensors]
assert {t.dtype for t in results} == {torch.bfloat16}
targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
launches = [target for target in targets if "triton" in target]
assert launches == ["triton_kernel_wrapper_functional"] * 3, launches
"""
    result = run_python(code, INTERNIMAGE_OPS="triton")
    assert result.returncode == 0, result.stderr[-3000:]
