"""Nsight Compute on the operator's kernels, and compute-sanitizer on a few calls.

    python -m benchmarks.gpu.tools ncu | sanitizer | calls

`calls` is the program that the tools run: a forward and a backward pass of the operator, after a
first one that loads what is loaded lazily.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time

import torch

from benchmarks.gpu.rows import ROOT, Rows
from benchmarks.gpu.sections import parser
from src.ops import dcnv3

METRICS = {
    "gpu__time_duration.sum": "time",
    "launch__registers_per_thread": "registers",
    "launch__shared_mem_per_block": "shared memory a block",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "sm__inst_executed.avg.per_cycle_elapsed": "instructions a cycle",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "lts__t_sectors_op_red.sum": "L2 sectors added",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 %",
    "l1tex__t_sector_hit_rate.pct": "L1 hits %",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "shared bank conflicts",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "shared wavefronts",
}
# Batch, side, groups, channels of a group.
LARGE = {"T.s1 N=64 bf16": (64, 56, 4, 16), "T.s3 N=64 bf16": (64, 14, 16, 16)}
SMALL = [(1, 7, 2, 16), (2, 14, 3, 16), (1, 20, 2, 7), (1, 9, 1, 40)]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WRONG = 9
"""Exit code of compute-sanitizer where it has found an error."""


def call(shape: tuple[int, int, int, int], dtype: torch.dtype, std: float = 1.0) -> None:
    """One forward and backward pass."""
    batch, side, groups, channels = shape
    widths = (groups * channels, groups * 18, groups * 9)
    x, offset, mask = (
        torch.randn(batch, side, side, n, device="cuda").to(dtype).requires_grad_() for n in widths
    )
    offset = (offset * std).detach().requires_grad_()
    output = dcnv3(x, offset, mask, groups=groups, mask_softmax=True)
    torch.autograd.grad(output, (x, offset, mask), torch.randn_like(output))
    torch.cuda.synchronize()


def calls(args: argparse.Namespace) -> None:
    """What the tools look at."""
    if args.large is None:
        for shape in SMALL:
            for dtype in DTYPES.values():
                call(shape, dtype)
                call(shape, dtype, 10.0)
        return
    call(LARGE[args.large], torch.bfloat16)
    torch.cuda.profiler.start()
    call(LARGE[args.large], torch.bfloat16)
    torch.cuda.profiler.stop()


def kernel_rows(text: str) -> list[dict[str, str]]:
    """Kernel name and metrics of each launch, from what `ncu --csv --page raw` prints."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 2:
        return []
    header, units, *launches = csv.reader(lines)
    found = []
    for values in launches:
        cells = dict(zip(header, values, strict=False))
        row = {"kernel": cells.get("Kernel Name", "").split("(")[0][-80:]}
        for name, label in METRICS.items():
            if name in cells:
                unit = units[header.index(name)]
                row[label] = f"{cells[name]} {unit if unit not in ('%', '') else ''}".strip()
        found.append(row)
    return found


def ncu(rows: Rows) -> None:
    """A row for every kernel of one forward and backward pass: fills and conversions too."""
    for name in LARGE:
        if rows.find("Nsight Compute", f"{name}: all") is not None:
            continue
        tool = ["ncu", "--csv", "--page", "raw", "--profile-from-start", "off"]
        tool += ["--metrics", ",".join(METRICS)]
        result = _run([*tool, *_program("--large", name)])
        found = kernel_rows(result.stdout)
        for number, row in enumerate(found):
            rows.add("Nsight Compute", f"{name}: {number}", **row)
        note = f"{len(found)} kernels" if found else _tail(result)
        rows.add("Nsight Compute", f"{name}: all", kernel=note)


def sanitizer(rows: Rows) -> None:
    for tool in ("memcheck", "racecheck"):
        if rows.find("compute-sanitizer", tool) is not None:
            continue
        start = time.perf_counter()
        # Without torch's own allocator, an access behind a tensor is one behind its allocation.
        command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer"]
        command += ["--tool", tool, "--error-exitcode", str(WRONG)]
        result = _run([*command, *_program()])
        outcome = {0: "clean", WRONG: "errors"}.get(result.returncode, "did not run")
        seconds = round(time.perf_counter() - start, 1)
        rows.add("compute-sanitizer", tool, outcome=outcome, last=_tail(result), seconds=seconds)


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.tools", "calls", *arguments]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(result.stdout[-4000:], result.stderr[-4000:], flush=True)
    return result


def _tail(result: subprocess.CompletedProcess[str]) -> str:
    lines = [x.strip() for x in (result.stdout + result.stderr).splitlines() if x.strip()]
    return lines[-1][:200] if lines else f"exit code {result.returncode}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("part", choices=("ncu", "sanitizer", "calls"))
    options.add_argument("--large", choices=LARGE, help="of calls: one large call instead")
    args = options.parse_args()
    if args.part == "calls":
        calls(args)
    else:
        {"ncu": ncu, "sanitizer": sanitizer}[args.part](Rows(args.out))


if __name__ == "__main__":
    main()
