"""Compiled kernel compared with the reference for unusual windows and data."""

import pytest
import torch
from dcnv3_cases import FLOAT32, Problem, assert_same, make_problem

from src.ops import dcnv3, dcnv3_grid_sample, dcnv3_reference

WINDOWS = {
    "plain": {},
    "odd_map": {"height": 3, "width": 11},
    "one_pixel": {"height": 1, "width": 1},
    "one_column": {"height": 6, "width": 1},
    "batch_1": {"n": 1},
    "batch_3": {"n": 3},
    "batch_5": {"n": 5},
    "kernel_1": {"kernel_size": 1, "padding": 0},
    "kernel_5": {"kernel_size": 5, "padding": 2},
    "kernel_2": {"kernel_size": 2},
    "kernel_3x1": {"kernel_size": (3, 1), "padding": (1, 0)},
    "kernel_13": {"kernel_size": 13, "padding": 6, "groups": 9, "group_channels": 2},
    "no_padding": {"padding": 0},
    "padding_2x1": {"padding": (2, 1)},
    "padding_0x3": {"padding": (0, 3)},
    "stride_2": {"stride": 2, "height": 9},
    "stride_1x3": {"stride": (1, 3)},
    "dilation_2": {"dilation": 2, "padding": 2},
    "scale_2": {"offset_scale": 2.0},
    "scale_0.5": {"offset_scale": 0.5},
    "remove_center": {"remove_center": True},
    "remove_center_5": {"remove_center": True, "kernel_size": 5, "padding": 2},
    "zero_offset": {"offset_std": 0.0},
    "far_offset": {"offset_std": 30.0},
    "many_groups": {"groups": 33, "group_channels": 2},
}


@pytest.mark.parametrize("mask_softmax", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, mask_softmax):
    problem = make_problem(**WINDOWS[name], mask_softmax=mask_softmax)
    want = problem.run(dcnv3_reference)
    assert_same(problem.run(dcnv3), want, rtol=1e-10, atol=1e-10)
    single = [t.double() for t in problem.run(dcnv3, torch.float32)]
    if name == "zero_offset" or problem.kwargs.get("offset_scale", 1.0) == 1.0:
        assert_same(single, want, **FLOAT32)


@pytest.mark.parametrize("mask_softmax", [False, True])
@pytest.mark.parametrize("group_channels", [1, 7, 8, 16, 20, 24, 32, 64, 80])
def test_group_channels(group_channels, mask_softmax):
    problem = make_problem(groups=3, group_channels=group_channels, mask_softmax=mask_softmax)
    want = problem.run(dcnv3_reference)
    assert_same(problem.run(dcnv3), want, rtol=1e-10, atol=1e-10)
    assert_same([t.double() for t in problem.run(dcnv3, torch.float32)], want, **FLOAT32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_at_impossible_positions_contribute_nothing(value, dtype):
    problem = make_problem(group_channels=16, mask_softmax=True, dtype=dtype)
    without = make_problem(group_channels=16, mask_softmax=True, dtype=dtype)
    problem.offset[:, ::2, :, 1::5] = value
    without.offset[:, ::2, :, 1::5] = 1e6  # clearly outside
    results = problem.run(dcnv3)
    assert all(t.isfinite().all() for t in results)
    assert_same(results, without.run(dcnv3), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_non_finite_pixels_affect_only_the_points_that_sample_them(bad, dtype):
    problem = make_problem(n=1, height=6, width=6, group_channels=16, offset_std=0.4, dtype=dtype)
    problem.input[0, 0, 0, 3] = bad
    problem.input[0, 5, 2, 20] = bad
    problem.input[0, 3, 5, 9] = bad
    got, want = problem.run(dcnv3), problem.run(dcnv3_reference)
    assert 0 < (~want[0].isfinite()).sum() < want[0].numel() / 10
    assert_same([t.isfinite().double() for t in got], [t.isfinite().double() for t in want])
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else FLOAT32
    finite = [
        (a.where(b.isfinite(), 0), b.where(b.isfinite(), 0)) for a, b in zip(got, want, strict=True)
    ]
    assert_same(*zip(*finite, strict=True), **tolerance)


def test_pixels_outside_are_not_multiplied_by_zero():
    """All samples are outside the image, next to an infinite column: nothing may become NaN."""
    problem = make_problem(n=1, height=4, width=4, groups=1, group_channels=16, offset_std=0.0)
    problem.input[..., 0, :] = torch.inf
    problem.offset[..., 0::2] = -100.0
    output, grad_input, grad_offset, grad_mask = problem.run(dcnv3)
    for tensor in (output, grad_input, grad_offset, grad_mask):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_softmax_of_large_and_masked_logits(dtype):
    problem = make_problem(groups=4, group_channels=16, mask_softmax=True, dtype=dtype)
    problem.mask.mul_(100.0)
    problem.mask[:, :, ::2, 3] = -torch.inf
    problem.mask[:, 1, :, 10] = 1e4
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else FLOAT32
    assert_same(problem.run(dcnv3), problem.run(dcnv3_reference), **tolerance)


def test_softmax_equals_pytorch():
    logits = make_problem(mask_softmax=True)
    weights = make_problem()
    shape = logits.mask.shape
    weights.mask = logits.mask.unflatten(-1, (2, 9)).softmax(-1).reshape(shape)
    fused, plain = (p.run(dcnv3, torch.float32)[0] for p in (logits, weights))
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)


def test_grid_sample_baseline_is_equivalent():
    problem = make_problem(padding=(2, 1), stride=(1, 2), offset_scale=2.0, mask_softmax=True)
    assert_same(problem.run(dcnv3), problem.run(dcnv3_grid_sample), rtol=1e-9, atol=1e-9)


def test_agrees_with_torchvision():
    """DCNv3 equals deformable convolution v2 with a depthwise kernel of ones."""
    ops = pytest.importorskip("torchvision.ops")
    problem = make_problem(n=2, height=7, width=6, groups=2, group_channels=3, stride=2)
    kernel = 3
    n, height, width, _ = problem.offset.shape
    # DCNv3: width slow, (x, y). torchvision: height slow, (y, x).
    offset = problem.offset.view(n, height, width, 2, kernel, kernel, 2).transpose(4, 5).flip(-1)
    mask = problem.mask.view(n, height, width, 2, kernel, kernel).transpose(4, 5)
    theirs = ops.deform_conv2d(
        problem.input.permute(0, 3, 1, 2).contiguous(),
        offset.reshape(n, height, width, -1).permute(0, 3, 1, 2).contiguous(),
        torch.ones(6, 1, kernel, kernel, dtype=torch.float64),
        stride=2,
        padding=1,
        mask=mask.reshape(n, height, width, -1).permute(0, 3, 1, 2).contiguous(),
    )
    ours = dcnv3(problem.input, problem.offset, problem.mask, **problem.kwargs)
    torch.testing.assert_close(ours.permute(0, 3, 1, 2), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", [dcnv3, dcnv3_reference, dcnv3_grid_sample])
def test_empty_batch(operator):
    results = make_problem(n=0, mask_softmax=True).run(operator)
    assert results[0].shape == (0, 5, 7, 16)
    assert [t.shape[0] for t in results] == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_views_of_one_linear(dtype):
    """Offset and mask as slices of one tensor, input and output gradient strided."""
    problem = make_problem(groups=4, group_channels=16, mask_softmax=True, dtype=dtype)
    packed = torch.cat((problem.offset, problem.mask), dim=-1)
    offset, mask = packed.split([problem.offset.shape[-1], problem.mask.shape[-1]], dim=-1)
    assert not offset.is_contiguous()
    x = problem.input.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not x.is_contiguous()
    view = Problem(x, offset, mask, problem.kwargs)
    want = dcnv3(*problem.tensors(requires_grad=False), **problem.kwargs)
    got = dcnv3(view.input, view.offset, view.mask, **view.kwargs)
    assert torch.equal(got, want)
    assert got.is_contiguous()


def test_gradients_through_views_of_one_linear():
    problem = make_problem(groups=2, group_channels=4, mask_softmax=True)
    packed = torch.cat((problem.offset, problem.mask), dim=-1).requires_grad_()
    sizes = [problem.offset.shape[-1], problem.mask.shape[-1]]
    grads = []
    for operator in (dcnv3, dcnv3_reference):
        output = operator(problem.input, *packed.split(sizes, dim=-1), **problem.kwargs)
        grads.append(
            torch.autograd.grad(output.sum(), packed)[0]
        )  # an expanded gradient with stride 0
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_views_that_are_not_rows():
    """A batch slice, a transposed tensor and every second row are copied."""
    problem = make_problem(n=4, height=6, width=6, mask_softmax=True)
    for change in (
        lambda t: t[1::2],
        lambda t: t.transpose(1, 2),
        lambda t: t[:, :, :1].expand(-1, -1, 6, -1),
    ):
        view = [change(t) for t in (problem.input, problem.offset, problem.mask)]
        dense = [t.contiguous() for t in view]
        assert torch.equal(dcnv3(*view, **problem.kwargs), dcnv3(*dense, **problem.kwargs))
