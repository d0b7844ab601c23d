"""DCNv4: official numbers, its relation to DCNv3, errors, transforms.

Bounds: see ``tests/official.py``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dcnv3_cases import FLOAT32, assert_same, dcnv4_of_two_tensors, make_problem, run_python
from torch.utils._python_dispatch import TorchDispatchMode

from src.ops import dcnv3, dcnv3_reference, dcnv4, dcnv4_columns, dcnv4_reference
from tests.models.conftest import name_noise
from tests.official import OfficialNumbers

FIXTURES = Path(__file__).parents[1] / "fixtures"
SPEC = json.loads((FIXTURES / "dcnv4_op.json").read_text())
CASES = SPEC["cases"]
OPERATORS = pytest.mark.parametrize("operator", [dcnv4, dcnv4_reference])


@pytest.fixture(scope="module")
def numbers():
    with np.load(FIXTURES / "dcnv4_op.npz") as arrays:
        return OfficialNumbers.read(SPEC, arrays)


def noise(name, *shape):
    return name_noise(name, int(np.prod(shape))).reshape(shape).astype(np.float32)


def official_problem(name, dtype):
    """Input, packed rows, gradient of the output and arguments of an official case."""
    case = CASES[name]
    points, columns = case["K"], case["columns"]
    out = (case["N"], case["Ho"], case["Wo"])
    channels = case["G"] * case["D"]
    input = noise(f"op4:{name}:input", case["N"], case["H"], case["W"], channels)
    rows = noise(f"op4:{name}:offset_mask", *out, columns)
    for group in range(case["G"]):
        rows[..., 3 * points * group :][..., : 2 * points] *= np.float32(case["off"])
    grad = noise(f"op4:{name}:grad_output", *out, channels)
    arguments = {
        "groups": case["G"],
        "stride": case["s"],
        "padding": case["p"],
        "dilation": case["d"],
        "offset_scale": case["osc"],
        "remove_center": bool(case["rc"]),
    }
    assert dcnv4_columns(case["G"], 3, bool(case["rc"])) == columns
    tensors = (torch.from_numpy(array).to(dtype) for array in (input, rows, grad))
    return *tensors, arguments


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@OPERATORS
def test_official_numbers(numbers, operator, name, dtype):
    input, rows, grad, arguments = official_problem(name, dtype)
    output = operator(input.requires_grad_(), rows.requires_grad_(), **arguments)
    output.backward(grad)
    found = {"output": output, "grad_input": input.grad, "grad_offset_mask": rows.grad}
    for key, value in found.items():
        assert value.dtype == dtype
        numbers.check(value, f"{name}/{key}")
    used = 3 * CASES[name]["K"] * CASES[name]["G"]
    assert rows.grad[..., used:].count_nonzero() == 0


def problem(n=2, height=5, width=7, groups=3, group_channels=8, dtype=torch.float64, **window):
    """Random input and packed rows of an output of the same size."""
    generator = torch.Generator().manual_seed(0)
    columns = dcnv4_columns(groups, 3, window.get("remove_center", False))
    shapes = ((n, height, width, groups * group_channels), (n, height, width, columns))
    tensors = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )
    return *tensors, {"groups": groups, **window}


def test_a_row_holds_offsets_and_weights_of_one_group_after_the_other():
    input, rows, arguments = problem(groups=2, offset_scale=2.0)
    grouped = rows[..., : 2 * 27].unflatten(-1, (2, 27))
    offset, mask = grouped[..., :18].flatten(-2), grouped[..., 18:].flatten(-2)
    expected = dcnv3(input, offset, mask, **arguments)
    torch.testing.assert_close(dcnv4(input, rows, **arguments), expected)


@pytest.mark.parametrize("groups", [1, 2, 5, 130])
@pytest.mark.parametrize(
    "window",
    [
        {},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
        {"remove_center": True, "offset_scale": 0.5},
        {"stride": 2, "group_channels": 16},
    ],
)
def test_rows_of_any_length(groups, window):
    """A vector holds points of one group or of several, and a tile all groups or a part of them."""
    problem = make_problem(n=2, height=4, width=3, groups=groups, **window)
    expected = problem.run(dcnv3_reference)
    assert_same(problem.run(dcnv4_of_two_tensors), expected, rtol=1e-10, atol=1e-10)
    single = [x.double() for x in problem.run(dcnv4_of_two_tensors, torch.float32)]
    assert_same(single, expected, **FLOAT32)


def test_large_feature_maps():
    """Bands of rows are summed."""
    problem = make_problem(n=1, height=96, width=90, groups=2, group_channels=4)
    assert_same(
        problem.run(dcnv4_of_two_tensors), problem.run(dcnv3_reference), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("window", [{}, {"remove_center": True, "offset_scale": 0.5}])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_only_the_gradients_that_are_wanted(wanted, window):
    input, rows, arguments = problem(**window)
    input.requires_grad_(wanted[0])
    rows.requires_grad_(wanted[1])
    results = []
    for operator in (dcnv4, dcnv4_reference):
        output = operator(input, rows, **arguments)
        leaves = [tensor for tensor in (input, rows) if tensor.requires_grad]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows_dtype", [None, torch.float32])
def test_sixteen_bits(dtype, rows_dtype):
    input, rows, arguments = problem(dtype=dtype)
    rows = rows.to(rows_dtype or dtype)
    tensors = [tensor.requires_grad_() for tensor in (input, rows)]
    output = dcnv4(*tensors, **arguments)
    grads = torch.autograd.grad(output.float().square().sum(), tensors)
    assert [x.dtype for x in (output, *grads)] == [dtype, dtype, rows.dtype]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = dcnv4_reference(*exact, **arguments)
    torch.testing.assert_close(output.double(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    ("dtype", "rows_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize(
    "window",
    [
        {},
        {"kernel_size": [3, 3], "padding": (2, 1), "offset_scale": 2},
        {"remove_center": True, "padding": 2, "dilation": 2},
    ],
)
def test_without_gradients(dtype, rows_dtype, window):
    """The kernel is called by another overload, with the same result."""
    input, rows, arguments = problem(n=1, height=9, width=9, groups=2)
    if window.get("remove_center"):
        rows = rows[..., :48]
    if window.get("padding") == (2, 1):
        rows = torch.cat([rows, rows[:, :2]], dim=1)
    input, rows = input.to(dtype), rows.to(rows_dtype)
    expected = dcnv4(input.clone().requires_grad_(), rows, **arguments, **window)
    assert expected.requires_grad
    found = dcnv4(input, rows, **arguments, **window)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    with torch.no_grad():
        found = dcnv4(input.requires_grad_(), rows, **arguments, **window)
    assert not found.requires_grad
    assert torch.equal(found, expected)


def test_dispatch_modes_see_one_operator():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen = []
    input, rows, arguments = problem()
    with Names():
        dcnv4(input, rows, **arguments)
    assert seen == ["internimage.dcnv4.default"]


@pytest.mark.parametrize("stride", [True, 1.0, "1"])
def test_a_window_that_equals_one_seen_before(stride):
    input, rows, arguments = problem()
    dcnv4(input, rows, **arguments, stride=1)
    with pytest.raises(ValueError, match="stride must be an integer"):
        dcnv4(input, rows, **arguments, stride=stride)


def test_empty_batch():
    input, rows, arguments = problem(n=0)
    assert dcnv4(input, rows, **arguments).shape == input.shape


def test_gradcheck():
    input, rows, arguments = problem(n=1, height=3, width=4, groups=1, group_channels=2)
    tensors = [tensor.requires_grad_() for tensor in (input, rows)]
    assert torch.autograd.gradcheck(
        lambda *x: dcnv4(*x, **arguments), tensors, fast_mode=True, eps=1e-7
    )


def test_operator_registration():
    input, rows, arguments = problem(n=1, height=3, width=4, groups=2, group_channels=4)
    tensors = [tensor.requires_grad_() for tensor in (input, rows)]
    window = (arguments["groups"], [3, 3], [1, 1], [1, 1], [1, 1], 1.0, False)
    torch.library.opcheck(torch.ops.internimage.dcnv4.default, (*tensors, *window))


def test_compiled_graph():
    input, rows, arguments = problem(dtype=torch.float32)

    def step(input, rows):
        return dcnv4(input * 2, rows, **arguments)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        tensors = [tensor.clone().requires_grad_() for tensor in (input, rows)]
        output = function(*tensors)
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_exported_program():
    input, rows, arguments = problem(dtype=torch.float32)

    class Layer(torch.nn.Module):
        def forward(self, input, rows):
            return dcnv4(input, rows, **arguments)

    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(Layer(), (input, rows), dynamic_shapes=(batch, batch))
    nodes = [str(node.target) for node in program.graph.nodes]
    assert "internimage.dcnv4.default" in nodes
    torch.testing.assert_close(
        program.module()(input[:1], rows[:1]), dcnv4(input[:1], rows[:1], **arguments)
    )


def test_autocast_casts_the_values():
    input, rows, arguments = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dcnv4(input, rows, **arguments).dtype == torch.bfloat16


def test_no_second_derivative():
    input, rows, arguments = problem()
    output = dcnv4(input, rows.requires_grad_(), **arguments)
    (grad,) = torch.autograd.grad(output.square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*dcnv4_reference"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, r: (x[0], r), ValueError, r"input must have shape \(N, H, W, C\)"),
        (lambda x, r: (x.int(), r), TypeError, "input must be float64"),
        (lambda x, r: (x[..., :-1], r), ValueError, "groups must divide the 23 channels"),
        (lambda x, r: (x, r[..., :-1]), ValueError, r"offset_mask must have shape \(2, 5, 7, 88\)"),
        (lambda x, r: (x, r[:1]), ValueError, r"offset_mask must have shape \(2, 5, 7, 88\)"),
        (lambda x, r: (x, r.float()), TypeError, "offset_mask must be float64 for float64 input"),
    ],
)
@OPERATORS
def test_errors(operator, change, error, message):
    input, rows, arguments = problem()
    with pytest.raises(error, match=message):
        operator(*change(input, rows), **arguments)


def test_without_kernels_of_its_own():
    """The rows are copied for DCNv3, here in plain PyTorch."""
    code = """
import torch
from src.ops import backends, dcnv4, dcnv4_columns, dcnv4_reference

x = torch.randn(2, 5, 6, 12, dtype=torch.float64, requires_grad=True)
rows = torch.randn(2, 5, 6, dcnv4_columns(3), dtype=torch.float64, requires_grad=True)
results = []
for operator in (dcnv4, dcnv4_reference):
    output = operator(x, rows, groups=3, offset_scale=0.5)
    results.append([output, *torch.autograd.grad(output.square().sum(), (x, rows))])
for found, expected in zip(*results):
    torch.testing.assert_close(found, expected)
print(backends("dcnv4")["cpu"])
"""
    result = run_python(code, INTERNIMAGE_OPS="reference")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "dcnv3: reference (INTERNIMAGE_OPS=reference)\n"


def test_columns():
    published = {4: 112, 5: 136, 7: 192, 8: 216, 10: 272, 14: 384, 16: 432, 20: 544, 28: 760}
    assert {groups: dcnv4_columns(groups) for groups in published} == published
    assert dcnv4_columns(3, remove_center=True) == 72
