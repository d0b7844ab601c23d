"""The library that runs the operators of ``--dcn native`` in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from src import ops
from src.errors import UserError
from src.ops._load import BUILD_COMMANDS

DOMAIN = "internimage"
"""Domain of its operators."""
COPY = "internimage_ops.so"
"""Name of the copy beside an exported file."""
_INSTALLED = Path(ops.__file__).with_name("_onnx.abi3.so")


def installed_library() -> Path | None:
    """The library of this installation, or ``None`` if it is not built.

    A library is a program. The one beside a file that somebody else has exported is never loaded.
    """
    return _INSTALLED if _INSTALLED.is_file() else None


def required_library() -> Path:
    """The library of this installation.

    Raises:
        UserError: If it is not built.
    """
    library = installed_library()
    if library is None:
        raise UserError(
            f"--dcn native and its files need {_INSTALLED.name}, which is not built. Build it with "
            f"`{BUILD_COMMANDS['cpu']}`, or export with --dcn deformconv."
        )
    return library
