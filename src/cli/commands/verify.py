"""``python -m src verify``: check a dataset folder and name what the data module would refuse."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from src.data.verify import ade20k as verify_ade20k
from src.data.verify.imagenet import Report, verify_imagenet
from src.decoding import MAX_PIXELS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``verify``; default is those of the process.

    Returns:
        Exit status: 0 if all is well, 1 if there are problems.
    """
    parser = argparse.ArgumentParser(
        prog="python -m src verify", description="Check a data folder and name what is wrong."
    )
    layouts = parser.add_subparsers(required=True, metavar="LAYOUT")
    imagenet = layouts.add_parser("imagenet", help="ROOT/{train,val}/<class>/*")
    add = imagenet.add_argument
    add("--root", type=Path, default=Path("data/imagenet"), help="data folder (%(default)s)")
    add("--splits", nargs="+", default=["train", "val"], help="folders to check (train val)")
    add("--decode", action="store_true", help="also decode every image")
    imagenet.set_defaults(run=_imagenet)
    ade20k = layouts.add_parser("ade20k", help="ROOT/{images,annotations}/{training,validation}/*")
    verify_ade20k.add_arguments(ade20k)
    ade20k.set_defaults(run=_ade20k)
    for layout in (imagenet, ade20k):
        cores = os.cpu_count() or 1
        layout.add_argument("--workers", type=int, default=cores, help="threads (all cores)")
        layout.add_argument(
            "--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images (%(default)s)"
        )
    args = parser.parse_args(argv)
    report = args.run(args)
    _print(report, args.root)
    return 1 if report.problems else 0


def _imagenet(args: argparse.Namespace) -> Report:
    workers = args.workers if args.decode else 0
    return verify_imagenet(
        args.root, args.splits, decode_workers=workers, max_pixels=args.max_pixels
    )


def _ade20k(args: argparse.Namespace) -> Report:
    facts, problems = verify_ade20k.verify_ade20k(args)
    print("\n".join(facts))
    return Report(problems=problems)


def _print(report: Report, root: Path) -> None:
    for split, counts in report.counts.items():
        if counts:
            print(
                f"{root / split}: {sum(counts.values())} images in {len(counts)} classes, "
                f"{min(counts.values())} to {max(counts.values())} each"
            )
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"problem: {problem}")
    count = len(report.problems)
    print(f"{count} problem{'s' if count > 1 else ''}" if count else "no problems found")
