"""Measure on a GPU what the project claims, within a budget of minutes.

    python -m benchmarks.gpu --minutes 9 --peers FOLDER

Sections run in order of value, each with a limit of its own; every row is written when it is
measured: `rows.jsonl`, `gpu.md`, `machine.json` and `log.txt` in `--out`. Rows of an earlier call
on the same card with the same source are kept and not measured again: give the same `--out`, or
`--resume rows.jsonl`. Nothing is compiled before it starts: build the CUDA library first.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.gpu.rows import ROWS, Rows, machine
from benchmarks.gpu.sections import all_sections, parser
from benchmarks.gpu.session import Session, stop_on_sigterm


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("The GPU benchmarks need a CUDA device, and PyTorch sees none here.")
    stop_on_sigterm()
    rows = Rows(args.out)
    if args.resume is not None and not (args.out / ROWS).exists():
        (args.out / ROWS).write_bytes(args.resume.read_bytes())
    rows.describe(machine(args.device))
    print(json.dumps(rows.machine, indent=1), flush=True)
    sections = [s for s in all_sections(args) if not args.sections or s.name in args.sections]
    Session(rows, args.minutes * 60).run(sections)
    print(f"Written to {args.out}")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    options = parser(__doc__)
    add = options.add_argument
    add("--minutes", type=float, default=9.0, help="time for everything")
    add("--sections", nargs="+", metavar="NAME", help="only these")
    add("--resume", type=Path, help="rows.jsonl of an earlier call, for an empty --out")
    args = options.parse_args(argv)
    known = [section.name for section in all_sections(args)]
    if unknown := set(args.sections or ()) - set(known):
        options.error(f"--sections accepts {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    main()
