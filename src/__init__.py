"""InternImage on PyTorch Lightning: operator, models, data, tasks and command line."""

import sys
import warnings
from pathlib import Path


def _hidden_src() -> Path | None:
    """Another folder `src` with Python files that an installed wheel of this project hides."""
    here = Path(__file__).resolve().parent
    if (here.parent / "pyproject.toml").is_file():  # a checkout
        return None
    folders = (Path(entry).resolve() / "src" for entry in sys.path)
    others = (folder for folder in folders if folder != here and any(folder.glob("*.py")))
    return next(others, None)


if (_hidden := _hidden_src()) is not None:
    warnings.warn(
        f"`import src` imports internimage-lightning from {Path(__file__).resolve().parent}, not "
        f"{_hidden}; rename that folder, or install internimage-lightning in another environment.",
        stacklevel=2,
    )
