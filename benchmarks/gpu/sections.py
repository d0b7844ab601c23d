"""The sections of the driver, in order of value, and the arguments that their programs share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.rows import ROOT
from benchmarks.gpu.session import Section

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
WORK = ROOT / "runs" / "benchmark_gpu"
SAMPLE = 60
GPU_TESTS = ["tests/ops/test_fused_layers.py", "tests/ops/test_dcnv3_gpu.py"]
CPU_TESTS = ["tests/ops/test_dcnv3_errors.py"]
NO_TESTS = 5
"""Exit code of pytest where all tests have results already."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that the driver passes to every section."""
    options = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add = options.add_argument
    add("--out", type=_absolute, default=RESULTS, help="folder of the rows and the report")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try it out")
    add("--peers", type=_absolute, help="folder searched first for other implementations")
    add("--data", type=_absolute, help="ImageNet folder of the run from files")
    add("--work", type=_absolute, default=WORK, help="folder for toy data and runs")
    add("--all-shapes", action="store_true", help="every stage, size and dtype of the operator")
    add("--workers", type=int, default=6, help="processes of the tests")
    return options


def _absolute(text: str) -> Path:
    """A path that is the same in the root of the repository, where the sections run."""
    return Path(text).resolve()


def all_sections(args: argparse.Namespace) -> list[Section]:
    """Sections in order of value, with the seconds that each is worth."""
    own = _own_arguments(args)

    def program(module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.gpu.{module}", *own, *arguments]

    is_gpu = args.device == "cuda"
    return [
        _tests("correctness", args, 75, GPU_TESTS if is_gpu else CPU_TESTS, SAMPLE),
        Section("operator", program("operator_speed"), 120),
        Section("network", program("network_speed", "eager"), 75),
        Section("compiled", program("network_speed", "compiled"), 90),
        Section("ncu", program("tools", "ncu"), 60, program="ncu"),
        Section("sanitizer", program("tools", "sanitizer"), 90, program="compute-sanitizer"),
        Section("first run", program("first_run", "lines"), 240),
        *([Section("files", program("first_run", "files"), 120)] if args.data else []),
        Section("large", program("network_speed", "large"), 75),
        _tests("suite", args, 600, ["tests"] if is_gpu else CPU_TESTS, 0),
    ]


def _own_arguments(args: argparse.Namespace) -> list[str]:
    own = ["--out", str(args.out), "--device", args.device, "--work", str(args.work)]
    for name in ("peers", "data"):
        if (value := getattr(args, name)) is not None:
            own += [f"--{name}", str(value)]
    return own + (["--all-shapes"] if args.all_shapes else [])


def _tests(
    name: str, args: argparse.Namespace, seconds: float, paths: list[str], sample: int
) -> Section:
    mark = ["-m", "gpu and not slow" if sample else "gpu"] if args.device == "cuda" else []
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(args.workers), *mark, *paths]
    command += ["-p", "benchmarks.gpu.pytest_rows", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]
    environment = {
        "GPU_ROWS": str(args.out.resolve()),
        "GPU_ROWS_SECTION": name,
        "GPU_ROWS_SAMPLE": str(sample),
    }
    # Failed tests are results: 1.
    return Section(name, command, seconds, environment=environment, fine=(0, 1, NO_TESTS))
