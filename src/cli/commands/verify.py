"""``python -m src verify``: check a dataset folder for problems before training."""

from __future__ import annotations

import os
from collections.abc import Sequence

from src.cli.tool_parser import ToolParser
from src.data.verify import LAYOUTS
from src.data.verify.report import Report
from src.decoding import MAX_PIXELS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``verify``; default is the command line.

    Returns:
        Exit code: 0 if there are no problems, 1 otherwise.
    """
    parser = ToolParser(
        prog="python -m src verify", description="Check a dataset folder and list its problems."
    )
    layouts = parser.add_subparsers(required=True, metavar="LAYOUT")
    cores = os.cpu_count() or 1
    for name, module in LAYOUTS.items():
        layout = layouts.add_parser(name, help=module.TREE)
        module.add_arguments(layout)
        layout.add_argument(
            "--workers", type=int, default=cores, help="threads (default: all cores)"
        )
        layout.add_argument(
            "--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images (%(default)s)"
        )
        layout.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    report: Report = args.run(args)
    _print(report)
    return 1 if report.problems else 0


def _print(report: Report) -> None:
    for fact in report.facts:
        print(fact)
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"problem: {problem}")
    count = len(report.problems)
    print(f"{count} problem{'s' if count > 1 else ''}" if count else "no problems found")
