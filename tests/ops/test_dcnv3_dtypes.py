"""16-bit types and autocast against float64 on the same (rounded) values."""

import pytest
import torch
from dcnv3_cases import grad_like, make_problem

from src.ops import dcnv3

HALF_TYPES = [torch.bfloat16, torch.float16]


def assert_rounds_to(actual, exact, dtype):
    """Within one unit in the last place of `dtype`, plus the float32 error before rounding."""
    assert actual.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), exact, rtol=eps, atol=max(1e-4 * eps, 2e-5))


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("side_dtype", [None, torch.float32])
@pytest.mark.parametrize("mask_softmax", [False, True])
def test_half_types_round_once(dtype, side_dtype, mask_softmax):
    problem = make_problem(group_channels=16, dtype=dtype, mask_softmax=mask_softmax)
    side = side_dtype or dtype
    problem.offset, problem.mask = problem.offset.to(side), problem.mask.to(side)
    exact = problem.run(dcnv3, torch.float64)
    tensors = problem.tensors()
    output = dcnv3(*tensors, **problem.kwargs)
    grad = grad_like(output)
    want = torch.autograd.grad(
        dcnv3(*(exact_leaves := problem.tensors(torch.float64)), **problem.kwargs),
        exact_leaves,
        grad.double(),
    )
    got = torch.autograd.grad(output, tensors, grad)
    assert_rounds_to(output, exact[0], dtype)
    for actual, expected, tensor in zip(got, want, tensors, strict=True):
        assert_rounds_to(actual, expected, tensor.dtype)


def test_float32_offsets_are_kept_with_bfloat16_input():
    problem = make_problem(group_channels=16, dtype=torch.float32)
    problem.input = problem.input.bfloat16()
    problem.offset += 6.0  # bfloat16 would round to 1/32 of a pixel here
    fine = dcnv3(problem.input, problem.offset, problem.mask, **problem.kwargs)
    exact = dcnv3(*problem.tensors(torch.float64), **problem.kwargs)
    assert_rounds_to(fine, exact.detach(), torch.bfloat16)


@pytest.mark.parametrize("side_dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_the_input(side_dtype):
    problem = make_problem(group_channels=16, dtype=torch.float32, mask_softmax=True)
    x, offset, mask = (t.detach().requires_grad_() for t in problem.tensors())
    with torch.autocast("cpu", torch.bfloat16):
        output = dcnv3(x, offset.to(side_dtype), mask.to(side_dtype), **problem.kwargs)
    assert output.dtype == torch.bfloat16
    want = dcnv3(x.bfloat16(), offset.to(side_dtype), mask.to(side_dtype), **problem.kwargs)
    assert torch.equal(output, want)
    output.sum().backward()
    assert [t.grad.dtype for t in (x, offset, mask)] == [torch.float32] * 3


def test_autocast_leaves_float64_alone():
    problem = make_problem()
    with torch.autocast("cpu", torch.bfloat16):
        assert dcnv3(*problem.tensors(), **problem.kwargs).dtype == torch.float64
