"""DCNv3 against the plain path and every peer: right or wrong, and how fast.

Shapes are the stages of InternImage-T, -B and -H. Before a path is timed on a shape, its output and
gradients are compared with the float64 reference; what is wrong is reported, not timed. Times are
medians, the paths taking turns, the host ahead of the device. `share` is the time that reading and
writing every tensor once would take at the copy bandwidth measured in the same run, over ours.

The derivative by an offset jumps where a position is an integer, and rounding decides on which side
a position near one is. So gradients of offsets are compared where the float64 position keeps a
distance from integers; the others are counted (`near integers`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import peers, timing
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.sections import parser
from src.ops import dcnv3_reference

SECTION = "operator"
MODELS = {"T": (64, 4), "B": (112, 7), "H": (320, 10)}  # channels and groups of stage 1
INPUTS = {"224": (224, 224), "384": (384, 384), "640": (640, 640), "coco": (800, 1344)}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DIRECTIONS = ("forward", "forward_backward")
# Largest error allowed, relative to the largest value of the tensor compared.
TOLERANCES = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}
DISTANCE = 1e-3
"""Pixels from an integer, from which on float32 positions are on the side of the float64 ones."""
REFERENCE_IMAGES = 8
"""Images compared; each one's results depend on no other image."""
PARTS = ("output", "grad input", "grad offset", "grad mask")

Case = tuple[str, int, str]  # stage, batch, dtype
# In order of value.
DECIDING: list[Case] = [
    *((f"{stage}@224", 64, "bf16") for stage in ("T.s1", "T.s3", "H.s3")),
    *((f"{stage}@224", 64, "fp16") for stage in ("T.s1", "T.s3", "H.s3")),
    *((f"T.s{stage}@coco", 2, "fp16") for stage in (1, 2, 3, 4)),
    *((f"H.s{stage}@coco", 2, "fp16") for stage in (1, 3)),
    *((f"{stage}@224", 64, "bf16") for stage in ("T.s2", "T.s4", "H.s1", "B.s1", "B.s3")),
    *((f"T.s{stage}@coco", 2, "bf16") for stage in (1, 3)),
    *((f"{stage}@224", 1, "bf16") for stage in ("T.s1", "T.s3")),
    *((f"{stage}@224", 64, "fp32") for stage in ("T.s1", "T.s3", "H.s3")),
]
TINY = [("T.s4@224", 2, "bf16"), ("T.s4@224", 2, "fp32")]


def stages() -> dict[str, tuple[int, int, int, int]]:
    """Height, width, channels and groups of every stage, by name: `T.s1@224`."""
    found = {}
    for model, (channels, groups) in MODELS.items():
        for name, size in INPUTS.items():
            for stage in range(4):
                height, width = (math.ceil(side / (4 << stage)) for side in size)
                shape = height, width, channels << stage, groups << stage
                found[f"{model}.s{stage + 1}@{name}"] = shape
    return found


def all_cases() -> list[Case]:
    return [(stage, batch, dtype) for stage in stages() for batch in (1, 64) for dtype in DTYPES]


def make_tensors(
    batch: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Input, offset, mask logits and output gradient."""
    height, width, channels, groups = shape
    generator = torch.Generator(device).manual_seed(0)
    widths = (channels, groups * 18, groups * 9, channels)
    return [
        torch.randn(batch, height, width, n, generator=generator, device=device).to(dtype)
        for n in widths
    ]


def forward_backward(call: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor):
    """Output and gradients of all leaves."""
    output = call(*leaves)
    return output, *torch.autograd.grad(output, leaves, grad)


def some_images(tensor: Tensor) -> Tensor:
    """The first and the last images of a batch."""
    half = REFERENCE_IMAGES // 2
    if len(tensor) <= REFERENCE_IMAGES:
        return tensor
    return torch.cat((tensor[:half], tensor[-half:]))


def exact_results(tensors: list[Tensor], groups: int) -> list[Tensor]:
    """Output and gradients in float64."""
    *leaves, grad = (t.detach().double() for t in tensors)

    def reference(*leaves):
        return dcnv3_reference(*leaves, groups=groups, mask_softmax=True)

    leaves = [t.requires_grad_() for t in leaves]
    return [t.detach() for t in forward_backward(reference, leaves, grad)]


def near_integers(offset: Tensor, groups: int) -> Tensor:
    """Which values of `offset` belong to a point that rounding may put into another cell.

    The distance is that of float32 positions, or the rounding of a 16-bit offset if that is more.
    """
    points = offset.double().unflatten(-1, (groups * 9, 2))
    # Positions are a whole number of pixels away from offsets: stride, padding and dilation are 1.
    to_integer = (points - points.round()).abs()
    distance = (points.abs() * torch.finfo(offset.dtype).eps).clamp_min(DISTANCE)
    return (to_integer <= distance).any(-1, keepdim=True).expand_as(points).flatten(-2)


def errors(got: list[Tensor], exact: list[Tensor], near: Tensor) -> dict[str, float]:
    """Largest error of each tensor relative to its largest value; NaN stays NaN."""
    found = {}
    for name, have, want in zip(PARTS, got, exact, strict=True):
        difference = (have.double() - want).abs()
        if name == "grad offset":
            difference = difference.masked_fill(near, 0.0)
        found[name] = (difference.max() / want.abs().max()).item()
    return found


def judge(found: dict[str, float], tolerance: float) -> str | None:
    """What is wrong, or `None`."""
    wrong = [f"{name} {value:.1e}" for name, value in found.items() if not value <= tolerance]
    return f"wrong: {', '.join(wrong)}" if wrong else None


def measure(case: Case, paths: dict[str, peers.Path], args: argparse.Namespace) -> dict[str, Any]:
    """One row: errors and times of every path, in both directions."""
    stage, batch, dtype_name = case
    dtype, shape = DTYPES[dtype_name], stages()[stage]
    groups = shape[-1]
    tensors = make_tensors(batch, shape, dtype, args.device)
    *inputs, grad = tensors
    some = [some_images(t) for t in tensors]
    exact, near = exact_results(some, groups), near_integers(some[1], groups)
    row: dict[str, Any] = {"near integers": f"{near.double().mean().item():.2%}", "left out": {}}
    calls: dict[str, timing.Calls] = {what: {} for what in DIRECTIONS}
    for name, path in paths.items():
        if dtype not in path.dtypes:
            continue
        try:
            error = _errors_of(path, inputs, grad, exact, near, groups)
            if (problem := judge(error, TOLERANCES[dtype_name])) is not None:
                row["left out"][name] = problem
                continue
            row.setdefault("error", {})[name] = max(error.values())
            forward, both = _calls(path, inputs, grad, groups)
            calls["forward"][name], calls["forward_backward"][name] = forward, both
        except Exception as problem:  # out of memory, or a shape that a peer does not know
            if "CUDA error" in str(problem) or "illegal memory" in str(problem):
                raise  # nothing works in this process any more
            text = str(problem).splitlines() or [""]
            row["left out"][name] = f"{type(problem).__name__}: {text[0][:120]}"
    del exact
    if args.device == "cuda":
        torch.cuda.empty_cache()
    for what in DIRECTIONS:
        row[what] = timing.milliseconds(calls[what], args.seconds, args.device, hides_host=True)
    if "ours" in calls["forward"]:
        row["share"] = _shares(inputs, row, args.bandwidth)
    return row


def _errors_of(path, inputs, grad, exact, near, groups) -> dict[str, float]:
    """Errors of a path, called with the layout that it needs, on the images that are compared."""
    leaves = [t.detach().requires_grad_() for t in inputs]

    def call(*leaves):
        return path.call(*path.prepare(*leaves, groups), groups)

    got = [some_images(t) for t in forward_backward(call, leaves, grad)]
    return errors(got, exact, near)


def _calls(path, inputs, grad, groups) -> tuple[Callable[[], object], Callable[[], object]]:
    """What is timed: the operator on tensors that are in its layout."""
    leaves = [t.detach().requires_grad_() for t in path.prepare(*inputs, groups)]

    def call(*leaves):
        return path.call(*leaves, groups)

    def forward():
        with torch.no_grad():
            return call(*leaves)

    return forward, lambda: forward_backward(call, leaves, grad)


def _shares(inputs: list[Tensor], row: dict[str, Any], bandwidth: float) -> dict[str, float]:
    x, offset, logits = (t.nbytes for t in inputs)
    least = {"forward": 2 * x + offset + logits}
    least["forward_backward"] = least["forward"] + 3 * x + 2 * (offset + logits)
    return {what: least[what] / bandwidth / (row[what]["ours"] / 1e3) for what in DIRECTIONS}


def geometric_means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times longer each other path takes than ours, over the rows where both are right."""
    means: dict[str, dict[str, float]] = {}
    for path in peers.PATHS:
        for what in DIRECTIONS:
            times = [row[what] for row in rows if {path, "ours"} <= row.get(what, {}).keys()]
            logs = [math.log(t[path] / t["ours"]) for t in times]
            if path != "ours" and logs:
                means.setdefault(path, {})[what] = math.exp(sum(logs) / len(logs))
    return means


def cases_of(args: argparse.Namespace) -> Iterator[Case]:
    if args.device == "cpu":
        yield from TINY
        return
    yield from DECIDING
    if args.all_shapes:
        yield from (case for case in all_cases() if case not in DECIDING)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=0.3, help="measured time of a cell")
    args = options.parse_args()
    rows = Rows(args.out)
    peers.search_first(args.peers)
    paths, missing = peers.importable(args.device)
    for name, reason in missing.items():
        rows.add("operator: left out", name, reason=reason)
    args.bandwidth = timing.copy_bandwidth(args.device)
    rows.add("operator: copy", "GB/s", value=args.bandwidth / 1e9)
    own = {name: paths[name] for name in ("ours", "triton", "plain") if name in paths}
    for case in cases_of(args):
        key = "{} N={} {}".format(*case)
        if rows.find(SECTION, key) is not None:
            continue
        attempts = rows.attempts(SECTION, key)
        rows.start(SECTION, key)
        # Twice without a result: a peer has ended the process, or killed it slowly.
        note = {"note": "peers left out: no result in two attempts"} if attempts >= 2 else {}
        try:
            row = measure(case, paths if attempts < 2 else own, args)
        except torch.OutOfMemoryError:
            row = {"note": "not enough memory for the reference"}
            torch.cuda.empty_cache()
        rows.add(SECTION, key, **note, **row)
    found = [r for r in rows.read() if r["section"] == SECTION and r["state"] == rows.state]
    for path, mean in geometric_means(found).items():
        rows.add("operator: time over ours, geometric mean", path, **mean)


if __name__ == "__main__":
    main()
