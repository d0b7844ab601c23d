"""Open an ONNX file with ONNX Runtime, and the library of its operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.export.library import DOMAIN, installed_library, required_library
from src.export.packages import require


class DoesNotRunError(UserError):
    """A file does not run on an input.

    Args:
        path: The file.
        sizes: Shapes of the inputs.
        error: What its runtime says.
    """

    def __init__(self, path: Path, sizes: Iterable[Sequence[int]], error: Exception) -> None:
        shapes = ", ".join(str(tuple(size)) for size in sizes)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        super().__init__(f"{path.name} does not accept inputs of the size {shapes}: {reason}")


def session(path: str | Path, threads: int | None = None) -> Any:
    """Session of ONNX Runtime on the CPU.

    Operators of ``--dcn native`` are those of this installation, see `installed_library`.

    Args:
        path: The file.
        threads: Threads of ONNX Runtime; default is its own choice.

    Raises:
        UserError: If ONNX Runtime is not installed, or operators of the file are not built.
    """
    require("ONNX files", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    # Idle threads would otherwise take a core from whatever else the process computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    library = installed_library()
    if library is not None:
        options.register_custom_ops_library(str(library))
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises several unrelated classes
        if f"{DOMAIN}:" in str(error):
            required_library()
        raise
