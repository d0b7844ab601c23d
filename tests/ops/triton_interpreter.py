"""A process in which Triton interprets its kernels on the CPU.

`TRITON_INTERPRET` must be set before Triton is imported, and would spoil the tests on a device.

Reads one JSON list per line, `[function, arguments]`, and answers with a traceback or `null`.
"""

import json
import sys
import traceback

import torch
from dcnv3_cases import make_problem
from gpu_cases import check, run
from triton_operator import dcnv3_triton

from src.ops.triton import launch

# Larger blocks than on a device: the interpreter takes the same time for any number of rows.
launch.MAX_ROWS, launch.THREADS = 128, 1024


def deterministic(*tensors, **kwargs):
    return dcnv3_triton(*tensors, deterministic=True, **kwargs)


def check_case(name, dtype="float64", side_dtype=None, is_deterministic=False):
    operator = deterministic if is_deterministic else dcnv3_triton
    check(operator, name, getattr(torch, dtype), side_dtype and getattr(torch, side_dtype))


def check_same_bits():
    """Smaller programs add in another order, which changes float results but not integer ones."""
    problem = make_problem(n=1, height=4, width=4, groups=1, offset_std=0.4, dtype=torch.float32)
    grads = {operator: [] for operator in (deterministic, dcnv3_triton)}
    rows = launch.MAX_ROWS
    for launch.MAX_ROWS in (16, 4):
        for operator, results in grads.items():
            results.append(run(operator, problem)[1])
    launch.MAX_ROWS = rows
    assert torch.equal(*grads[deterministic])
    assert not torch.equal(*grads[dcnv3_triton])


def main():
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answer = None
        try:
            globals()[name](*arguments)
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
