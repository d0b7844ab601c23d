"""Random DCNv3 problems and comparison of two implementations."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.ops import dcnv4
from src.ops._arguments import make_window
from src.ops.packed import pack

ROOT = Path(__file__).resolve().parents[2]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}
"""Of float32 where maps have some 10 pixels a side: the official operator is up to 5e-6 off
(``tests/fixtures/dcnv3_op.json``), times `tests.official.FACTOR`, for each of two sides."""


@dataclass
class Problem:
    """Tensors and keyword arguments of one call."""

    input: Tensor
    offset: Tensor
    mask: Tensor
    kwargs: dict = field(default_factory=dict)

    def tensors(self, dtype=None, requires_grad=True):
        """New leaf tensors of input, offset and mask."""
        return tuple(
            t.detach().to(dtype or t.dtype, copy=True).requires_grad_(requires_grad)
            for t in (self.input, self.offset, self.mask)
        )

    def run(self, operator, dtype=None):
        """Output and the three gradients of `operator`."""
        tensors = self.tensors(dtype)
        output = operator(*tensors, **self.kwargs)
        return output.detach(), *torch.autograd.grad(output, tensors, grad_like(output))


def make_problem(
    n=2,
    height=5,
    width=7,
    groups=2,
    group_channels=8,
    *,
    kernel_size=3,
    stride=1,
    padding=1,
    dilation=1,
    offset_std=1.5,
    dtype=torch.float64,
    seed=0,
    **kwargs,
):
    """Random problem; the sizes of offset and mask follow from the window."""
    generator = torch.Generator().manual_seed(seed)
    kernel, step, pad, dil = (
        (v, v) if isinstance(v, int) else v for v in (kernel_size, stride, padding, dilation)
    )
    out = [
        (size + 2 * pad[i] - dil[i] * (kernel[i] - 1) - 1) // step[i] + 1
        for i, size in enumerate((height, width))
    ]
    points = kernel[0] * kernel[1] - int(kwargs.get("remove_center", False))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Problem(
        normal(n, height, width, groups * group_channels).to(dtype),
        (normal(n, *out, groups * points * 2) * offset_std).to(dtype),
        normal(n, *out, groups * points).to(dtype),
        {
            "groups": groups,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            **kwargs,
        },
    )


def dcnv4_of_two_tensors(input, offset, mask, *, mask_softmax=False, **kwargs):
    """``dcnv4`` with the arguments of ``dcnv3``, and NaN in the columns that are not used."""
    assert not mask_softmax
    names = ("stride", "padding", "dilation", "offset_scale", "remove_center")
    defaults = (1, 1, 1, 1.0, False)
    window = make_window(
        kwargs["groups"],
        kwargs.get("kernel_size", 3),
        *(kwargs.get(name, value) for name, value in zip(names, defaults, strict=True)),
        False,
    )
    return dcnv4(input, pack(offset, mask, window, fill=float("nan")), **kwargs)


def grad_like(output):
    """Output gradient that depends only on the sizes, rounded to the dtype of the output."""
    seed = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=seed, dtype=torch.float64).to(output.dtype)


def assert_same(actual, expected, **tolerance):
    """Compare outputs and gradients by name."""
    names = ("output", "grad_input", "grad_offset", "grad_mask")
    for name, a, b in zip(names, actual, expected, strict=True):
        torch.testing.assert_close(
            a, b, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


def run_python(code, **environment):
    """Run code in a new interpreter at the project root."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/ops'}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def cuobjdump():
    """The disassembler of the CUDA toolkit, or of Triton's wheel."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="cuobjdump comes with the toolkit or Triton")
        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return found
