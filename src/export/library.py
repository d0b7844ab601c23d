"""The library that runs the operators of ``--dcn native`` in ONNX Runtime."""

from __future__ import annotations

import platform
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


def operators(library: str | None) -> str:
    """What the operators of ONNX files are, as an object of a sentence.

    Args:
        library: Name of the library that the files need, or ``None``.
    """
    if library is None:
        return "standard operators only"
    return (
        f"standard operators and those of `{library}`: the CPU kernels of InternImage for ONNX "
        f"Runtime 1.22 or later, built for {platform.system()} on {platform.machine()}"
    )


def opening(name: str, library: str | None) -> list[str]:
    """Lines of Python that open an ONNX file of the folder ``FOLDER`` in ONNX Runtime.

    Args:
        name: Name of the file.
        library: See `operators`.
    """
    if library is None:
        return [f'session = onnxruntime.InferenceSession(str(FOLDER / "{name}"))']
    return [
        "options = onnxruntime.SessionOptions()",
        f'options.register_custom_ops_library(str(FOLDER / "{library}"))',
        f'session = onnxruntime.InferenceSession(str(FOLDER / "{name}"), options)',
    ]
