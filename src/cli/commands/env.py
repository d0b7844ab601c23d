"""``python -m src env``: print versions, devices and operator backends."""

from __future__ import annotations

from collections.abc import Sequence

from src.environment import report


def main(args: Sequence[str] | None = None) -> int:
    """Print the report.

    Args:
        args: Arguments after ``env``; none are accepted.

    Returns:
        Exit code.
    """
    if args:
        print("usage: python -m src env    (takes no arguments)")
        return 0 if {"-h", "--help"} & set(args) else 2
    print(report())
    return 0
