"""Find the compiled libraries, remember why one is missing, and speak up before anything slow runs.

``INTERNIMAGE_OPS`` is read once, when :mod:`src.ops` is imported:

* ``auto`` (default): compiled kernels where there are some, else plain PyTorch with one warning
  per device type;
* ``compiled``: running without a compiled kernel raises :class:`OpNotBuiltError`;
* ``reference``: plain PyTorch on purpose, nothing is loaded and nothing is said.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

MODES = ("auto", "compiled", "reference")
BUILD_COMMAND = "python setup.py build_ext --inplace"


class OpNotBuiltError(RuntimeError):
    """A compiled kernel was demanded (``INTERNIMAGE_OPS=compiled``) where there is none."""


def read_mode() -> str:
    """Value of ``INTERNIMAGE_OPS``; ``ValueError`` if it is none of :data:`MODES`."""
    mode = os.environ.get("INTERNIMAGE_OPS", "").strip().lower() or "auto"
    if mode not in MODES:
        raise ValueError(f"INTERNIMAGE_OPS must be one of {', '.join(MODES)}, got {mode!r}.")
    return mode


class Libraries:
    """What was loaded, and the reason for each device type that has nothing."""

    def __init__(self, mode: str, folder: Path) -> None:
        """Load what ``folder`` holds, unless ``mode`` is ``reference``."""
        self.mode = mode
        self.folder = folder
        self.missing = {"cuda": "there is no GPU kernel in this version"}
        self._warned: set[str] = set()
        reason = (
            "INTERNIMAGE_OPS=reference" if mode == "reference" else _load(folder / "_C.abi3.so")
        )
        if reason:
            self.missing["cpu"] = reason

    def on_fallback(self, device_type: str) -> None:
        """Called before plain PyTorch runs: raise, warn once, or stay silent, as the mode says."""
        if self.mode == "reference" or device_type in self._warned:
            return
        reason = self.missing.get(device_type, f"there is no kernel for {device_type}")
        if self.mode == "compiled":
            raise OpNotBuiltError(
                f"INTERNIMAGE_OPS=compiled, but DCNv3 has no compiled kernel on {device_type}: "
                f"{reason}.{self._advice(device_type)}"
            )
        self._warned.add(device_type)
        warnings.warn(
            f"DCNv3 runs in plain PyTorch on {device_type}, many times slower than the compiled "
            f"kernel: {reason}.{self._advice(device_type)} "
            "INTERNIMAGE_OPS=reference silences this.",
            UserWarning,
            stacklevel=2,
        )

    def _advice(self, device_type: str) -> str:
        if device_type != "cpu":
            return ""
        return f" Build it with `{BUILD_COMMAND}` in {self.folder.parents[1]}."


def _load(path: Path) -> str | None:
    """Load one library; the reason if that was not possible."""
    if not path.is_file():
        return f"not built, {path.name} is missing"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} did not load ({error})"
    return None


LIBRARIES = Libraries(read_mode(), Path(__file__).resolve().parent)
