"""The optional packages of the export: whether they are installed, and what they print."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from src.errors import UserError


def require(purpose: str, *packages: str) -> None:
    """Check that optional packages are installed.

    Args:
        purpose: What needs them, in the plural; begins the message.
        packages: Their names.

    Raises:
        UserError: If one is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'{purpose} need {" and ".join(missing)}: pip install -c constraints.txt -e ".[export]"'
        )


@contextmanager
def silence() -> Iterator[None]:
    """Suppress progress output and warnings of the exporters; errors are still raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
