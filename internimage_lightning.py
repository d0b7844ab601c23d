"""Entry point of the command `internimage`: check whose package `src` is before importing it.

`src` is a common name. In a wheel, another `src` may be found first, for example from PYTHONPATH.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def other_src() -> str | None:
    """Where `import src` finds a package that is not the one of this project."""
    spec = find_spec("src")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if folders and Path(folders[0]).resolve() == HERE / "src":
        return None
    return ", ".join(folders) or "nothing"


def main() -> int:
    """Run the command line, or return 2 if `src` is another package."""
    if (found := other_src()) is not None:
        print(
            f"error: `import src` finds {found}, not the package src of internimage-lightning in "
            f"{HERE}; run the command with another working directory or PYTHONPATH, or in an "
            "environment of its own.",
            file=sys.stderr,
        )
        return 2
    from src.cli import main as run

    return run()
