"""Speed of DCNv3 on a GPU against the plain path and every peer that can be imported.

    python benchmarks/op_gpu.py

Shapes are the stages of InternImage-T, -B and -H for images of 224, 384 and 640 pixels and for COCO
(800 x 1344), batches of 1 and 64, in float32, float16 and bfloat16. Before a path is timed on a
shape, its output and gradients are compared with the float64 oracle on the device, at that batch;
what is wrong is reported and not timed, and if that is ours, the benchmark stops. Times are medians
of CUDA events, the paths taking turns, the host ahead of the device. `share` is the time that
reading and writing every tensor once would take at the copy bandwidth measured in the same run,
divided by ours. Results go to benchmarks/results/op_gpu.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_peers import PATHS, importable
from torch import Tensor

from src import files
from src.ops import backends, dcnv3_reference

MODELS = {"T": (64, 4), "B": (112, 7), "H": (320, 10)}  # channels and groups of stage 1
INPUTS = {"224": (224, 224), "384": (384, 384), "640": (640, 640), "coco": (800, 1344)}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DIRECTIONS = ("forward", "forward_backward")
# Largest error allowed, relative to the largest value of the tensor compared.
TOLERANCES = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}
LEAST_ROUNDS, MOST_ROUNDS = 20, 200
SLEEP_CYCLES = 2_000_000  # about a millisecond at 2 GHz; a call has to be issued within it


def shapes(models: list[str], inputs: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, height, width, channels and groups of every stage."""
    for model in models:
        for name in inputs:
            for stage in range(4):
                height, width = (math.ceil(size / (4 << stage)) for size in INPUTS[name])
                channels, groups = (value << stage for value in MODELS[model])
                yield f"{model}.s{stage + 1}@{name}", height, width, channels, groups


def make_tensors(
    batch: int, height: int, width: int, channels: int, groups: int, dtype: torch.dtype
) -> list[Tensor]:
    """Input, offset, mask logits and output gradient."""
    generator = torch.Generator("cuda").manual_seed(0)
    widths = (channels, groups * 18, groups * 9, channels)
    return [
        torch.randn(batch, height, width, n, generator=generator, device="cuda").to(dtype)
        for n in widths
    ]


def forward_backward(call: Callable[..., Tensor], leaves: list[Tensor], groups: int, grad: Tensor):
    """Output and gradients of all leaves."""
    output = call(*leaves, groups)
    return output, *torch.autograd.grad(output, leaves, grad)


def oracle(*arguments):
    *tensors, groups = arguments
    return dcnv3_reference(*tensors, groups=groups, mask_softmax=True)


def exact_results(tensors: list[Tensor], groups: int) -> list[Tensor]:
    """Output and gradients in float64."""
    *leaves, grad = (t.double() for t in tensors)
    leaves = [t.requires_grad_() for t in leaves]
    return [t.detach() for t in forward_backward(oracle, leaves, groups, grad)]


def error(got: tuple[Tensor, ...], exact: list[Tensor]) -> float:
    """Largest error relative to the largest value; not of gradients in a peer's packed layout."""
    count = len(exact) if len(got) == len(exact) else 2
    return max(
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(got[:count], exact[:count], strict=True)
    )


def milliseconds(
    calls: dict[str, Callable[[], object]], seconds: float, *, hides_host: bool = False
) -> dict[str, float]:
    """Median time of each call by CUDA events, the calls taking turns.

    With `hides_host` the device sleeps before each call until the host has issued it whole, so that
    the time is that of the kernels; otherwise a call that the host is slow to issue takes longer.
    """
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    spent, rounds = 0.0, 0
    while rounds < LEAST_ROUNDS or (spent < seconds * 1e3 and rounds < MOST_ROUNDS):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if hides_host:
                torch.cuda._sleep(SLEEP_CYCLES)
            start.record()
            call()
            end.record()
            events[name].append((start, end))
        torch.cuda.synchronize()
        spent += sum(pairs[-1][0].elapsed_time(pairs[-1][1]) for pairs in events.values())
        rounds += 1
    return {
        name: statistics.median(start.elapsed_time(end) for start, end in pairs)
        for name, pairs in events.items()
    }


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 1 GiB reads and writes."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    time = milliseconds({"copy": lambda: target.copy_(source)}, 0.5)["copy"]
    return 2 * source.nbytes / (time / 1e3)


def measure_shape(args, paths, shape, batch: int, dtype_name: str) -> dict[str, object]:
    """One row of the result: errors and times of every path, in both directions."""
    name, height, width, channels, groups = shape
    dtype = DTYPES[dtype_name]
    tensors = make_tensors(batch, height, width, channels, groups, dtype)
    *inputs, grad = tensors
    row: dict[str, object] = {"shape": name, "batch": batch, "dtype": dtype_name, "errors": {}}
    exact = exact_results(tensors, groups)
    calls: dict[str, dict[str, Callable[[], object]]] = {what: {} for what in DIRECTIONS}
    for path_name, path in paths.items():
        if dtype not in path.dtypes:
            continue
        leaves = [t.detach().requires_grad_() for t in path.prepare(*inputs, groups)]

        def both(path=path, leaves=leaves):
            return forward_backward(path.call, leaves, groups, grad)

        def forward(path=path, leaves=leaves):
            with torch.no_grad():
                return path.call(*leaves, groups)

        try:
            row["errors"][path_name] = error(both(), exact)
        except RuntimeError as problem:  # out of memory, or a shape that a peer does not know
            row["errors"][path_name] = str(problem).splitlines()[0][:120]
            continue
        if row["errors"][path_name] <= TOLERANCES[dtype_name]:
            calls["forward"][path_name] = forward
            calls["forward_backward"][path_name] = both
        elif path_name == "ours":
            sys.exit(f"{name} batch {batch} {dtype_name}: ours is wrong: {row['errors']}.")
    del exact
    torch.cuda.empty_cache()
    for what in DIRECTIONS:
        row[what] = milliseconds(calls[what], args.seconds, hides_host=True)
    x, offset, logits = (t.nbytes for t in inputs)
    least = {"forward": 2 * x + offset + logits}
    least["forward_backward"] = least["forward"] + 3 * x + 2 * (offset + logits)
    row["share"] = {
        what: least[what] / args.bandwidth / (row[what]["ours"] / 1e3) for what in DIRECTIONS
    }
    return row


def geometric_means(rows: list[dict], paths) -> dict[str, dict[str, float]]:
    """How many times longer each other path takes than ours, over the rows where it is right."""
    means: dict[str, dict[str, float]] = {}
    for path in paths:
        for what in DIRECTIONS:
            logs = [math.log(r[what][path] / r[what]["ours"]) for r in rows if path in r[what]]
            if path != "ours" and logs:
                means.setdefault(path, {})[what] = math.exp(sum(logs) / len(logs))
    return means


def report(result: dict) -> str:
    facts = "\n".join(f"- {key}: {value}" for key, value in result["machine"].items())
    missing = "\n".join(f"- {name}: {why}" for name, why in result["not importable"].items())
    means = "\n".join(
        f"| {path} | {m['forward']:.2f}x | {m['forward_backward']:.2f}x |"
        for path, m in result["geometric mean"].items()
    )
    names = result["paths"]
    head = "| shape | N | dtype | " + " | ".join(
        f"{what.replace('_', ' + ')}: {name}" for what in DIRECTIONS for name in [*names, "share"]
    )
    lines = [head + " |", "|" + " --- |" * (3 + 2 * (len(names) + 1))]
    for row in result["rows"]:
        cells = [row["shape"], str(row["batch"]), row["dtype"]]
        for what in DIRECTIONS:
            cells += [f"{row[what][n]:.4f}" if n in row[what] else "-" for n in names]
            cells.append(f"{row['share'][what]:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return f"""# DCNv3 on a GPU

Written by `{result["command"]}`. Milliseconds of the device, medians, without what the host takes
to issue a call; softmax included in ours, plain, official and deformops. `-`: the path does not
take the dtype, failed, or was wrong (the JSON has errors).

{facts}

Not importable here:

{missing or "- none"}

Time of the others over ours, geometric mean:

| path | forward | forward + backward |
| --- | --- | --- |
{means}

{chr(10).join(lines)}
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--inputs", nargs="+", default=[*INPUTS], choices=INPUTS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--dtypes", nargs="+", default=[*DTYPES], choices=DTYPES)
    parser.add_argument("--seconds", type=float, default=0.5, help="device time of one table cell")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("op_gpu.py needs a CUDA device, and PyTorch sees none here.")
    paths, missing = importable()
    args.bandwidth = copy_bandwidth()
    rows = []
    for shape in shapes(args.models, args.inputs):
        for batch in args.batch:
            for dtype in args.dtypes:
                try:
                    rows.append(measure_shape(args, paths, shape, batch, dtype))
                    print(json.dumps(rows[-1]), flush=True)
                except torch.OutOfMemoryError:
                    print(f"{shape[0]} batch {batch} {dtype}: no memory for the oracle, left out")
                    torch.cuda.empty_cache()
    result = {
        "command": " ".join(["python", "benchmarks/op_gpu.py", *sys.argv[1:]]),
        "machine": {
            "gpu": torch.cuda.get_device_name(),
            "copy bandwidth": f"{args.bandwidth / 1e9:.0f} GB/s",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "ours": backends()["cuda"],
            "date": date.today().isoformat(),
        },
        "paths": [*paths],
        "not importable": missing,
        "geometric mean": geometric_means(rows, PATHS),
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_text(args.out / "op_gpu.json", json.dumps(result, indent=1) + "\n")
    files.write_text(args.out / "op_gpu.md", report(result))
    print(f"Written to {args.out / 'op_gpu.md'} and op_gpu.json")


if __name__ == "__main__":
    main()
