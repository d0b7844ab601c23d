"""The calls of the official extension, on the operators of this project."""

import pytest
import torch
from dcnv3_cases import grad_like, make_problem

from src.ops import dcnv3, official

# kernel, stride, padding and dilation as (height, width); groups, channels of a group, scale
WINDOW = (3, 5, 1, 2, 1, 2, 2, 1, 2, 8, 1.5)


@pytest.fixture
def problem():
    return make_problem(
        groups=2, group_channels=8, kernel_size=(3, 5), stride=(1, 2), padding=(1, 2),
        dilation=(2, 1), offset_scale=1.5,
    )  # fmt: skip


def test_function(problem):
    """`apply` takes tensors, window, im2col_step and remove_center, and is differentiable."""
    got = problem.run(lambda *tensors, **_: official.DCNv3Function.apply(*tensors, *WINDOW, 2, 0))
    for a, b in zip(got, problem.run(dcnv3), strict=True):
        assert torch.equal(a, b)


def test_forward_and_backward(problem):
    output, *gradients = problem.run(dcnv3)
    tensors = problem.input, problem.offset, problem.mask
    assert torch.equal(official.dcnv3_forward(*tensors, *WINDOW, 256, False), output)
    got = official.dcnv3_backward(*tensors, *WINDOW, grad_like(output), 256, False)
    for a, b in zip(got, gradients, strict=True):
        assert torch.equal(a, b)


def test_plain_pytorch(problem):
    tensors = problem.input, problem.offset, problem.mask
    got = official.dcnv3_core_pytorch(*tensors, *WINDOW, False)
    torch.testing.assert_close(got, dcnv3(*tensors, **problem.kwargs))


def test_remove_center():
    problem = make_problem(groups=2, group_channels=8, remove_center=True)
    tensors = problem.input, problem.offset, problem.mask
    window = (3, 3, 1, 1, 1, 1, 1, 1, 2, 8, 1.0)
    want = dcnv3(*tensors, **problem.kwargs)
    assert torch.equal(official.dcnv3_forward(*tensors, *window, 2, True), want)
    # Version 1.0 has no argument remove_center.
    with pytest.raises(ValueError, match="offset must have shape"):
        official.DCNv3Function.apply(*tensors, *window, 2)


def test_gradients_of_parts(problem):
    """Only one tensor requires a gradient."""
    offset = problem.offset.clone().requires_grad_()
    output = official.DCNv3Function.apply(problem.input, offset, problem.mask, *WINDOW, 2)
    output.sum().backward()
    assert offset.grad.shape == offset.shape


def test_errors(problem):
    tensors = problem.input, problem.offset, problem.mask
    with pytest.raises(ValueError, match=r"group \* group_channels = 2 \* 4 channels .* got 16"):
        official.dcnv3_forward(*tensors, *WINDOW[:9], 4, 1.5, 2, False)
    with pytest.raises(TypeError, match="expected 11 arguments of the window"):
        official.dcnv3_forward(*tensors, *WINDOW)
    with pytest.raises(TypeError, match="dcnv3_backward takes 16 or 17 arguments, got 14"):
        official.dcnv3_backward(*tensors, *WINDOW)


def test_errors_of_the_output_gradient(problem):
    tensors = problem.input, problem.offset, problem.mask
    gradient = torch.zeros_like(problem.run(dcnv3)[0])
    for wrong, error, message in (
        (gradient[:, 1:], ValueError, "grad_output must have shape"),
        (gradient[..., :1], ValueError, "grad_output must have shape"),
        (gradient.to("meta"), ValueError, "grad_output must be on the device of input, cpu"),
        (gradient.half(), TypeError, "grad_output must have the dtype of input"),
    ):
        with pytest.raises(error, match=message):
            official.dcnv3_backward(*tensors, *WINDOW, wrong, 256, False)
