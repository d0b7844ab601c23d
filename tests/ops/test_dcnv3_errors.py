"""What a wrong call says: one sentence with the value and what is accepted."""

import pytest
import torch
from dcnv3_cases import make_problem

from src.ops import dcnv3, dcnv3_grid_sample, dcnv3_reference

OPERATORS = [dcnv3, dcnv3_reference, dcnv3_grid_sample]


def changed(name, change):
    problem = make_problem()
    setattr(problem, name, change(getattr(problem, name)))
    return problem


WRONG_TENSORS = {
    "input rank": (
        "input",
        lambda t: t[0],
        ValueError,
        r"input must have shape \(N, H, W, C\), got \(5, 7, 16\)",
    ),
    "input dtype": ("input", lambda t: t.long(), TypeError, "input must be float64, .* got int64"),
    "input channels": (
        "input",
        lambda t: t[..., :15],
        ValueError,
        "groups must divide the 15 channels .* groups=2",
    ),
    "offset shape": (
        "offset",
        lambda t: t[..., :-2],
        ValueError,
        r"offset must have shape \(2, 5, 7, 36\) = \(N, H_out, W_out, groups \* points \* 2\), "
        r"got \(2, 5, 7, 34\)",
    ),
    "offset rank": (
        "offset",
        lambda t: t[0],
        ValueError,
        r"offset must have shape \(2, 5, 7, 36\)",
    ),
    "offset dtype": (
        "offset",
        lambda t: t.float(),
        TypeError,
        "offset must be float64 for float64 .* got float32",
    ),
    "offset device": (
        "offset",
        lambda t: t.to("meta"),
        ValueError,
        "offset must be on the device of input, cpu, got meta",
    ),
    "mask shape": (
        "mask",
        lambda t: t[:1],
        ValueError,
        r"mask must have shape \(2, 5, 7, 18\) = \(N, H_out, W_out, groups \* points\), "
        r"got \(1, 5, 7, 18\)",
    ),
    "mask dtype": (
        "mask",
        lambda t: t.int(),
        TypeError,
        "mask must be float64 for float64 .* got int32",
    ),
    "mask device": (
        "mask",
        lambda t: t.to("meta"),
        ValueError,
        "mask must be on the device of input, cpu, got meta",
    ),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors(operator, name):
    tensor, change, kind, message = WRONG_TENSORS[name]
    problem = changed(tensor, change)
    with pytest.raises(kind, match=message) as caught:
        operator(problem.input, problem.offset, problem.mask, **problem.kwargs)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_half_input_names_both_accepted_types():
    problem = make_problem(dtype=torch.bfloat16)
    with pytest.raises(
        TypeError, match="mask must be bfloat16 or float32 for bfloat16 input, got float16"
    ):
        dcnv3(problem.input, problem.offset, problem.mask.half(), **problem.kwargs)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups": 3}, "groups must divide the 16 channels .* got groups=3"),
        ({"groups": 0}, "groups must divide .* got groups=0"),
        ({"kernel_size": 0}, "kernel_size must be at least 1 in both directions, got 0"),
        (
            {"kernel_size": (3, 3, 3)},
            r"kernel_size must be an integer or a \(height, width\) pair, got \(3, 3, 3\)",
        ),
        ({"kernel_size": "3"}, "kernel_size must be an integer .* got '3'"),
        (
            {"kernel_size": 33, "padding": 16},
            "kernel_size must have at most 1024 points, got 33 x 33",
        ),
        ({"stride": (1, 0)}, r"stride must be at least 1 in both directions, got \(1, 0\)"),
        ({"padding": -1}, "padding must be at least 0 .* got -1"),
        ({"dilation": 0}, "dilation must be at least 1 .* got 0"),
        ({"kernel_size": 9, "padding": 0}, "5 x 7 pixels is too small for the window"),
        (
            {"remove_center": True, "kernel_size": 2},
            r"odd square kernel of at least 3, got kernel_size=\(2, 2\)",
        ),
        (
            {"remove_center": True, "kernel_size": (3, 5)},
            r"odd square kernel .* got kernel_size=\(3, 5\)",
        ),
        ({"remove_center": True, "kernel_size": 1}, "odd square kernel of at least 3"),
    ],
)
def test_wrong_windows(operator, kwargs, message):
    problem = make_problem()
    with pytest.raises(ValueError, match=message):
        operator(problem.input, problem.offset, problem.mask, **{**problem.kwargs, **kwargs})


def test_compiled_kernel_stays_in_bounds_without_the_checks():
    """Direct calls of the registered operator check bounds."""
    problem = make_problem()
    window = (2, [3, 3], [1, 1], [1, 1], [1, 1], 1.0, False, False)
    call = torch.ops.internimage.dcnv3.default
    with pytest.raises(RuntimeError, match="offset does not have the shape"):
        call(problem.input, problem.offset[..., :-2], problem.mask, *window)
    with pytest.raises(RuntimeError, match="groups must divide"):
        call(problem.input, problem.offset, problem.mask, 5, *window[1:])
    with pytest.raises(RuntimeError, match="grad does not have the shape"):
        torch.ops.internimage.dcnv3_backward.default(
            problem.input[:, :2], problem.input, problem.offset, problem.mask, *window, [True] * 3
        )
