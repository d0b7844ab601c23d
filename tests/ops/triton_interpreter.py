"""A process in which Triton interprets its kernels on the CPU.

`TRITON_INTERPRET` must be set before Triton is imported, and would spoil the tests on a device.

Reads one JSON list per line, `[function, arguments]`, and answers with a traceback or `null`.
"""

import json
import sys
import traceback
from contextlib import contextmanager
from functools import partial

import torch
from dcnv3_cases import make_problem
from gpu_cases import LARGE, check, run, with_points_at
from triton.runtime import interpreter
from triton_operator import dcnv3_triton, packed_triton

from src.ops import dcnv3_reference
from src.ops.triton import launch

# Larger blocks than on a device: the interpreter takes the same time for any number of rows.
launch.MAX_ROWS, launch.THREADS, launch.PRODUCT_ROWS = 128, 1024, 64


def deterministic(*tensors, **kwargs):
    return dcnv3_triton(*tensors, deterministic=True, **kwargs)


def check_case(name, dtype="float64", side_dtype=None, is_deterministic=False):
    operator = deterministic if is_deterministic else dcnv3_triton
    check(operator, name, getattr(torch, dtype), side_dtype and getattr(torch, side_dtype))


def check_packed(name, dtype="float64", rows_dtype=None, is_deterministic=False):
    operator = partial(packed_triton, deterministic=is_deterministic)
    check(operator, name, getattr(torch, dtype), rows_dtype and getattr(torch, rows_dtype))


def check_same_bits():
    """Programs in another order change sums of floats, but not of integers."""
    problem = make_problem(**LARGE, offset_std=4.0, dtype=torch.float32)
    grads = {operator: [] for operator in (deterministic, dcnv3_triton)}
    for operator, results in grads.items():
        results.append(run(operator, problem)[1])
        with last_program_first():
            results.append(run(operator, problem)[1])
    assert torch.equal(*grads[deterministic])
    assert not torch.equal(*grads[dcnv3_triton])


@contextmanager
def last_program_first():
    """Run the programs of the first axis of a grid in reversed order."""
    builder = interpreter.interpreter_builder
    set_index = builder.set_grid_idx
    builder.set_grid_idx = lambda x, y, z: set_index(builder.grid_dim[0] - 1 - x, y, z)
    try:
        yield
    finally:
        builder.set_grid_idx = set_index


def check_sums(size, is_deterministic):
    """All points meet in one pixel, with gradients of one sign."""
    problem = with_points_at(8.0, 6.0)(make_problem(**LARGE))
    operator = deterministic if is_deterministic else dcnv3_triton
    got, want = (_input_gradient(f, problem, size) for f in (operator, dcnv3_reference))
    torch.testing.assert_close(got / size, want / size, rtol=1e-12, atol=1e-12)


def check_not_finite(value, height, width):
    """A gradient that is not finite reaches the pixels that its points touch, and no others."""
    problem = make_problem(**{**LARGE, "height": height, "width": width})
    got, want = (_input_gradient(f, problem, 1, value) for f in (dcnv3_triton, dcnv3_reference))
    assert 0 < want.isfinite().logical_not().sum() <= 36
    assert torch.equal(got.isfinite(), want.isfinite())
    torch.testing.assert_close(got[got.isfinite()], want[want.isfinite()])


def _input_gradient(operator, problem, size, value=None):
    tensors = problem.tensors()
    output = operator(*tensors, **problem.kwargs)
    upstream = torch.full_like(output, size)
    if value is not None:
        upstream[0, 7, 9, 3] = value
    return torch.autograd.grad(output, tensors[:1], upstream)[0]


def check_additions(side, groups, channels, std, corners, least):
    """Count additions of four values to global memory: `least` times fewer than `corners`."""
    problem = make_problem(
        n=1, height=side, width=side, groups=groups, group_channels=channels,
        offset_std=std, dtype=torch.bfloat16, mask_softmax=True,
    )  # fmt: skip
    count = 0
    builder = interpreter.interpreter_builder
    add = builder.create_atomic_rmw

    def counting(operation, pointer, value, mask, *rest):
        nonlocal count
        count += int(mask.data.sum())
        return add(operation, pointer, value, mask, *rest)

    builder.create_atomic_rmw = counting
    try:
        run(dcnv3_triton, problem)
    finally:
        builder.create_atomic_rmw = add
    print(f"{side}x{side} {groups} groups std {std}: {count // 4} of {corners}", file=sys.stderr)
    assert count // 4 * least <= corners


def main(functions):
    """Answer until the input ends."""
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answer = None
        try:
            functions[name](*arguments)
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(globals())
