"""Speed of the compiled DCNv3 or DCNv4 on the CPU compared with `grid_sample`.

    python benchmarks/op_cpu.py [--operator dcnv3 dcnv4 --shapes T]

Shapes are the four stages of InternImage-T and stages 1 and 3 of InternImage-H at 224 pixels, or
the four stages of FlashInternImage-T and two of -L for DCNv4; float32, with offsets from a normal
distribution with a standard deviation of one pixel. DCNv3 includes the softmax of the mask;
dcnv3_without_softmax gets the normalised mask, as the official operator does, and computes what
DCNv4 computes. All implementations are called through their public functions; "forward + backward"
computes all gradients with autograd. Before timing, outputs and gradients of both are compared with
the float64 reference. Calls are interleaved and the minimum time of each is reported, which makes
results comparable on a busy machine, also those of two operators in the same run.
Results are written to benchmarks/results/op_cpu.{json,md} for DCNv3, or to
op_cpu_<operators>.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from src import files
from src.ops import (
    backends,
    dcnv3,
    dcnv3_grid_sample,
    dcnv3_reference,
    dcnv4,
    dcnv4_columns,
    dcnv4_reference,
)

Shape = tuple[int, int, int]
"""Height and width, channels, groups."""


def dcnv4_grid_sample(input: Tensor, offset_mask: Tensor, *, groups: int) -> Tensor:
    """DCNv4 by the plain formulation of DCNv3, on the unpacked rows."""
    grouped = offset_mask[..., : groups * 27].unflatten(-1, (groups, 27))
    offset, mask = grouped[..., :18].flatten(-2), grouped[..., 18:].flatten(-2)
    return dcnv3_grid_sample(input, offset, mask, groups=groups)


@dataclass(frozen=True)
class Operator:
    """What is timed: implementations with the same signature, and the shapes."""

    name: str
    paths: dict[str, Callable[..., Tensor]]
    exact: Callable[..., Tensor]
    shapes: dict[str, Shape]
    normalised: bool = False  # the mask sums to one, instead of logits

    def make_tensors(self, batch: int, size: int, channels: int, groups: int) -> list[Tensor]:
        """Input, offset and mask (one tensor for DCNv4), and output gradient."""
        generator = torch.Generator().manual_seed(0)
        points = (dcnv4_columns(groups),) if self.name == "DCNv4" else (groups * 18, groups * 9)
        widths = (channels, *points, channels)
        tensors = [torch.randn(batch, size, size, width, generator=generator) for width in widths]
        if self.normalised:
            tensors[2] = tensors[2].unflatten(-1, (groups, 9)).softmax(-1).flatten(-2)
        return tensors


TINY: dict[str, Shape] = {
    "T stage 1": (56, 64, 4),
    "T stage 2": (28, 128, 8),
    "T stage 3": (14, 256, 16),
    "T stage 4": (7, 512, 32),
}
HUGE: dict[str, Shape] = {"H stage 1": (56, 320, 10), "H stage 3": (14, 1280, 40)}
OPERATORS = {
    "dcnv3": Operator(
        "DCNv3",
        {
            "compiled": partial(dcnv3, mask_softmax=True),
            "grid_sample": partial(dcnv3_grid_sample, mask_softmax=True),
        },
        partial(dcnv3_reference, mask_softmax=True),
        TINY | HUGE,
    ),
    "dcnv3_without_softmax": Operator(
        "DCNv3 without softmax",
        {"compiled": dcnv3, "grid_sample": dcnv3_grid_sample},
        dcnv3_reference,
        TINY | HUGE,
        normalised=True,
    ),
    "dcnv4": Operator(
        "DCNv4",
        {"compiled": dcnv4, "grid_sample": dcnv4_grid_sample},
        dcnv4_reference,
        TINY | {"L stage 1": (56, 160, 10), "L stage 3": (14, 640, 40)},
    ),
}
TOLERANCE = 1e-4  # of float32 against float64, on values of a variance of up to one
MIN_ROUNDS = 4
TURN_SECONDS = 0.01


def forward(path: Callable[..., Tensor], tensors: list[Tensor], groups: int) -> Tensor:
    with torch.no_grad():
        return path(*tensors[:-1], groups=groups)


def forward_backward(
    path: Callable[..., Tensor], tensors: list[Tensor], groups: int
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:-1]]
    output = path(*leaves, groups=groups)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[-1])]


def check(operator: Operator, name: str) -> dict[str, float]:
    """Largest error of each implementation; exits if the compiled one is incorrect."""
    size, channels, groups = operator.shapes[name]
    tensors = operator.make_tensors(1, size, channels, groups)
    exact = forward_backward(operator.exact, [tensor.double() for tensor in tensors], groups)
    errors = {}
    for path_name, path in operator.paths.items():
        got = forward_backward(path, tensors, groups)
        errors[path_name] = max(
            ((a - b).abs().max() / b.std().clamp(min=1)).item()
            for a, b in zip(got, exact, strict=True)
        )
        # With normalised grids, grid_sample sometimes rounds to the other side of an integer
        # (docs/ops.md).
        if path_name == "compiled" and errors[path_name] > TOLERANCE:
            sys.exit(f"{name}: {path_name} has an error of {errors[path_name]:.1e}; not timed.")
    return errors


PASSES = (forward, forward_backward)
Key = TypeVar("Key")


def shortest_times(calls: dict[Key, Callable[[], object]], seconds: float) -> dict[Key, float]:
    """Minimum time of each call in seconds, measured alternately for `seconds` in total."""
    best = {}
    for key, call in calls.items():
        start = time.perf_counter()
        call()
        best[key] = time.perf_counter() - start
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for key, call in calls.items():
            # Several calls per turn, because in a network the inputs are in the cache, which the
            # previous call of the other implementation has evicted.
            for _ in range(min(20, max(3, round(TURN_SECONDS / best[key])))):
                start = time.perf_counter()
                call()
                best[key] = min(best[key], time.perf_counter() - start)
    return best


def selected(args: argparse.Namespace) -> list[str]:
    """Names of the shapes to time, which all operators have."""
    shapes = [OPERATORS[operator].shapes for operator in args.operator]
    return [
        name
        for name in shapes[0]
        if name.startswith(args.shapes) and all(name in other for other in shapes)
    ]


def measure(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    operators = [OPERATORS[name] for name in args.operator]
    for name, batch in product(selected(args), args.batch):
        tensors = {
            operator.name: operator.make_tensors(batch, *operator.shapes[name])
            for operator in operators
        }
        for threads in args.threads:
            torch.set_num_threads(threads)
            calls = {
                (operator.name, what.__name__, path_name): partial(
                    what, path, tensors[operator.name], operator.shapes[name][2]
                )
                for operator in operators
                for what in PASSES
                for path_name, path in operator.paths.items()
            }
            best = shortest_times(calls, args.seconds * len(operators))
            for operator in operators:
                size, channels, groups = operator.shapes[name]
                row: dict[str, object] = {
                    "operator": operator.name,
                    "shape": name,
                    "size": size,
                    "channels": channels,
                    "groups": groups,
                    "batch": batch,
                    "threads": threads,
                }
                for what in PASSES:
                    compiled, baseline = (
                        best[operator.name, what.__name__, path] * 1e3 for path in operator.paths
                    )
                    row |= {
                        f"{what.__name__}_ms": compiled,
                        f"{what.__name__}_plain_ms": baseline,
                        f"{what.__name__}_ratio": baseline / compiled,
                    }
                yield row


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def mean_row(name: str, rows: list[dict[str, object]]) -> dict[str, object]:
    """Geometric means over all rows of an operator."""
    keys = [f"{what.__name__}_{kind}" for what in PASSES for kind in ("plain_ms", "ms", "ratio")]
    mine = [row for row in rows if row["operator"] == name]
    means = {key: geometric_mean([row[key] for row in mine]) for key in keys}
    return {"operator": name, "cases": len(mine), **means}


def machine(operator: str) -> dict[str, object]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "operator": backends(operator)["cpu"],
        "date": date.today().isoformat(),
    }


def times(row: dict[str, object]) -> str:
    return " | ".join(
        f"{row[f'{what.__name__}_plain_ms']:.3f} | {row[f'{what.__name__}_ms']:.3f} "
        f"| {row[f'{what.__name__}_ratio']:.1f}x"
        for what in PASSES
    )


def line(row: dict[str, object]) -> str:
    shape = f"{row['shape']}, {row['size']}² C{row['channels']} G{row['groups']}"
    return f"| {row['operator']} | {shape} | {row['batch']} | {row['threads']} | {times(row)} |"


def header(*columns: str) -> str:
    names = [
        *columns,
        *("forward: grid_sample ms", "compiled ms", "ratio"),
        *("forward + backward: grid_sample ms", "compiled ms", "ratio"),
    ]
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


HEADER = header("operator", "shape", "N", "threads")


def report(result: dict[str, object]) -> str:
    facts = "\n".join(
        f"- {key.replace('_', ' ')}: {value}" for key, value in result["machine"].items()
    )
    rows = "\n".join(line(row) for row in result["rows"])
    means = "\n".join(
        f"| {row['operator']} | {row['cases']} | {times(row)} |" for row in result["geometric_mean"]
    )
    errors = "\n".join(
        f"| {name} | {error['compiled']:.1e} | {error['grid_sample']:.1e} |"
        for name, error in result["max_error"].items()
    )
    names = ", ".join(row["operator"] for row in result["geometric_mean"])
    return f"""# {names} on the CPU: compiled kernels and `grid_sample`

Written by `{result["command"]}`. float32, minimum of interleaved
calls; DCNv3 includes the softmax of the mask unless it says without.

{facts}

Geometric means:

{header("operator", "cases")}
{means}

{HEADER}
{rows}

Largest difference from the float64 reference, over the output and all gradients (N = 1, checked
before timing). `grid_sample` normalises positions, so a few samples are rounded to the other side
of an integer, where the offset gradient is discontinuous.

| shape | compiled | grid_sample |
| --- | --- | --- |
{errors}
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--operator",
        nargs="+",
        choices=OPERATORS,
        default=["dcnv3"],
        help="operators whose calls alternate (default: dcnv3)",
    )
    parser.add_argument("--shapes", default="", help="only shapes that start so, such as T")
    parser.add_argument("--seconds", type=float, default=8.0, help="time per row (default: 8)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="output folder"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for name in args.operator:
        found = backends(name.partition("_")[0])["cpu"]
        if not found.startswith("compiled"):
            sys.exit(f"{name} is not compiled: {found}.")
    result: dict[str, object] = {
        "command": " ".join(["python", "benchmarks/op_cpu.py", *sys.argv[1:]]),
        "machine": machine(args.operator[0].partition("_")[0]),
        "max_error": {
            f"{OPERATORS[name].name} {shape}": check(OPERATORS[name], shape)
            for shape in selected(args)
            for name in args.operator
        },
    }
    print(HEADER, flush=True)
    rows = []
    for row in measure(args):
        print(line(row), flush=True)
        rows.append(row)
    result["rows"] = rows
    result["geometric_mean"] = [mean_row(OPERATORS[name].name, rows) for name in args.operator]
    args.out.mkdir(parents=True, exist_ok=True)
    stem = "_".join(["op_cpu", *(args.operator if args.operator != ["dcnv3"] else [])])
    files.write_text(args.out / f"{stem}.json", json.dumps(result, indent=1) + "\n")
    files.write_text(args.out / f"{stem}.md", report(result))
    for row in result["geometric_mean"]:
        print(f"geometric mean: | {row['operator']} | {times(row)} |")
    print(f"Written to {args.out / stem}.md and {stem}.json")


if __name__ == "__main__":
    main()
