"""Gradients: finite differences, subsets of gradients, second derivatives, memory."""

import pytest
import torch
from dcnv3_cases import FLOAT32, assert_same, grad_like, make_problem
from torch.autograd import gradcheck, gradgradcheck

from src.ops import dcnv3, dcnv3_reference, reference
from src.ops._arguments import make_window

GRADCHECK_CASES = {
    "plain": {},
    "softmax": {"mask_softmax": True},
    "remove_center": {"remove_center": True, "mask_softmax": True},
    "stride_dilation": {"stride": (1, 2), "dilation": (2, 1), "padding": (2, 1)},
    "scale": {"offset_scale": 2.0},
}


def smooth_problem(**kwargs):
    """Problem with positions at least 0.1 pixels from integers, where the derivative jumps."""
    problem = make_problem(n=2, height=2, width=3, groups=2, group_channels=3, **kwargs)
    scale = kwargs.get("offset_scale", 1.0)
    position = problem.offset * scale
    away = position.floor() + 0.1 + 0.8 * (position - position.floor())
    problem.offset = away / scale
    return problem


@pytest.mark.parametrize("operator", [dcnv3, dcnv3_reference])
@pytest.mark.parametrize("name", GRADCHECK_CASES)
def test_gradcheck(operator, name):
    problem = smooth_problem(**GRADCHECK_CASES[name])
    assert gradcheck(
        lambda *t: operator(*t, **problem.kwargs),
        problem.tensors(),
        eps=1e-6,
        atol=1e-6,
        rtol=1e-5,
        fast_mode=operator is dcnv3_reference,  # slow, and compared with the other one below
    )


def test_closed_form_backward_equals_autograd():
    """Compare the closed-form gradients of the fallback with autograd."""
    problem = make_problem(offset_std=3.0, mask_softmax=True, offset_scale=1.5, stride=(2, 1))
    output, *want = problem.run(dcnv3_reference)
    grad = grad_like(output)
    k = problem.kwargs
    window = make_window(
        k["groups"], 3, k["stride"], 1, 1, k["offset_scale"], remove_center=False, mask_softmax=True
    )
    tensors = problem.tensors(requires_grad=False)
    got = reference.backward(grad, *tensors, window, (True, True, True))
    assert_same((output, *got), (output, *want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", range(1, 8))
@pytest.mark.parametrize("group_channels", [16, 5])
def test_only_the_needed_gradients(wanted, group_channels):
    problem = make_problem(group_channels=group_channels, mask_softmax=True, dtype=torch.float32)
    full = problem.run(dcnv3)[1:]
    tensors = problem.tensors()
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(wanted >> i & 1))
    output = dcnv3(*tensors, **problem.kwargs)
    output.backward(grad_like(output))
    for i, tensor in enumerate(tensors):
        if wanted >> i & 1:
            torch.testing.assert_close(tensor.grad, full[i], **FLOAT32)
        else:
            assert tensor.grad is None


def test_no_graph_without_gradients():
    problem = make_problem()
    assert not dcnv3(*problem.tensors(requires_grad=False), **problem.kwargs).requires_grad
    with torch.no_grad():
        assert not dcnv3(*problem.tensors(), **problem.kwargs).requires_grad


def test_second_derivative_raises():
    problem = make_problem(mask_softmax=True)
    tensors = problem.tensors()
    output = dcnv3(*tensors, **problem.kwargs)
    (grad,) = torch.autograd.grad(output.sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*dcnv3_reference"):
        grad.sum().backward()


def test_reference_has_a_second_derivative():
    problem = smooth_problem()
    assert gradgradcheck(
        lambda x, m: dcnv3_reference(x, problem.offset, m, **problem.kwargs),
        (problem.tensors()[0], problem.tensors()[2]),
        fast_mode=True,
    )


def test_saves_only_its_inputs():
    problem = make_problem(mask_softmax=True, dtype=torch.float32)
    tensors = problem.tensors()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dcnv3(*tensors, **problem.kwargs)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in tensors}


def test_activation_checkpointing():
    problem = make_problem(mask_softmax=True)
    want = problem.run(dcnv3)

    def checkpointed(*tensors, **kwargs):
        return torch.utils.checkpoint.checkpoint(dcnv3, *tensors, use_reentrant=False, **kwargs)

    assert_same(problem.run(checkpointed), want, rtol=0, atol=0)
