"""``python -m src env``: print versions, devices and operator backends."""

from __future__ import annotations

from collections.abc import Sequence

from src.errors import UserError


def main(args: Sequence[str] | None = None) -> int:
    """Print the report.

    Args:
        args: Arguments after ``env``; none are accepted.

    Returns:
        Exit code.

    Raises:
        UserError: If there is an argument.
    """
    if args and {"-h", "--help"} & set(args):
        print("usage: python -m src env    (takes no arguments)")
        return 0
    if args:
        raise UserError(f"env takes no arguments, got {' '.join(args)!r}.")
    from src.environment import report  # imports PyTorch, which takes seconds

    print(report())
    return 0
