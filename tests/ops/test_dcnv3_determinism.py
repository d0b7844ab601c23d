"""The same bits whatever the number of threads."""

import pytest
import torch
from dcnv3_cases import FLOAT32, grad_like, make_problem

from src.ops import dcnv3

CASES = {
    "several_images": {"n": 5, "height": 23, "width": 17, "groups": 4, "group_channels": 16},
    "one_image": {"n": 1, "height": 40, "width": 37, "groups": 5, "group_channels": 16},
    "odd_channels": {"n": 3, "height": 31, "width": 29, "groups": 3, "group_channels": 7},
    # From 8192 pixels on, the backward works in bands of rows.
    "bands": {"n": 1, "height": 100, "width": 90, "groups": 3, "group_channels": 8},
    "bands_of_two_images": {"n": 2, "height": 129, "width": 71, "groups": 1, "group_channels": 16},
    "bands_with_far_offsets": {
        **{"n": 1, "height": 96, "width": 88, "groups": 2, "group_channels": 5},
        "offset_std": 40.0,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_threads(name, threads):
    problem = make_problem(**CASES[name], mask_softmax=True, dtype=torch.float32)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(problem.run(dcnv3))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", ["bands", "bands_with_far_offsets"])
def test_bands_compute_the_gradients_of_whole_images(name):
    """Nine copies of an image are too many for bands; each has the gradients of the one."""
    problem = make_problem(**CASES[name], dtype=torch.float32)
    banded = problem.run(dcnv3)[1:]
    whole = [t.detach().repeat(9, 1, 1, 1).requires_grad_() for t in problem.tensors()]
    output = dcnv3(*whole, **problem.kwargs)
    grads = torch.autograd.grad(output, whole, grad_like(output[:1]).expand_as(output))
    for got, want in zip(grads, banded, strict=True):
        torch.testing.assert_close(got[7:8], want, **FLOAT32)
