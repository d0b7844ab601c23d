"""Find the kernels, remember why one is missing, and speak up before anything slow runs.

``INTERNIMAGE_OPS`` is read once, when :mod:`src.ops` is imported:

* ``auto`` (default): compiled kernels where there are some, else Triton on a GPU, else plain
  PyTorch with one warning per device type;
* ``compiled``: running without a compiled kernel raises :class:`OpNotBuiltError`;
* ``triton``: Triton on a GPU even where a compiled library is built;
* ``reference``: plain PyTorch on purpose, nothing is loaded and nothing is said.

The order on a GPU holds for every dtype. It is by design, not by measurement: the two have not been
compared on a GPU yet.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

MODES = ("auto", "compiled", "triton", "reference")
LIBRARY_FILES = {"cpu": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}
BUILD_COMMANDS = {
    "cpu": "python setup.py build_ext --inplace",
    "cuda": "SRC_BUILD_CUDA=1 python setup.py build_ext --inplace",
}


class OpNotBuiltError(RuntimeError):
    """The kernel that ``INTERNIMAGE_OPS`` demands (``compiled``, ``triton``) is not there."""


def read_mode() -> str:
    """Value of ``INTERNIMAGE_OPS``; ``ValueError`` if it is none of :data:`MODES`."""
    mode = os.environ.get("INTERNIMAGE_OPS", "").strip().lower() or "auto"
    if mode not in MODES:
        raise ValueError(f"INTERNIMAGE_OPS must be one of {', '.join(MODES)}, got {mode!r}.")
    return mode


class Libraries:
    """What was loaded, and the reason for each device type that has no compiled library."""

    def __init__(self, mode: str, folder: Path) -> None:
        """Load what ``folder`` holds, unless ``mode`` is against it."""
        self.mode = mode
        self.folder = folder
        self.missing: dict[str, str] = {}
        self.no_triton = _why_no_triton(mode)
        self._warned: set[str] = set()
        for device_type, name in LIBRARY_FILES.items():
            reason = self._why_not(device_type) or _load(folder / name)
            if reason:
                self.missing[device_type] = reason

    def kernel(self, device_type: str) -> str:
        """What runs on a device type: ``compiled``, ``triton`` or ``reference``."""
        if device_type in LIBRARY_FILES and device_type not in self.missing:
            return "compiled"
        return "triton" if device_type == "cuda" and not self.no_triton else "reference"

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
        if device_type == "cuda" and self.mode == "triton":
            raise OpNotBuiltError(
                f"INTERNIMAGE_OPS=triton, but DCNv3 cannot run as Triton kernels: {self.no_triton}."
            )
        if device_type == "cuda":
            reason += f"; {self.no_triton}"
        self._warned.add(device_type)
        warnings.warn(
            f"DCNv3 runs in plain PyTorch on {device_type}, many times slower than the compiled "
            f"kernel: {reason}.{self._advice(device_type)} "
            "INTERNIMAGE_OPS=reference silences this.",
            UserWarning,
            stacklevel=2,
        )

    def _why_not(self, device_type: str) -> str | None:
        if self.mode == "reference" or (self.mode == "triton" and device_type == "cuda"):
            return f"INTERNIMAGE_OPS={self.mode}"
        if device_type == "cuda" and torch.version.cuda is None:
            return "this PyTorch is built without CUDA"
        return None

    def _advice(self, device_type: str) -> str:
        if device_type not in BUILD_COMMANDS:
            return ""
        return f" Build it with `{BUILD_COMMANDS[device_type]}` in {self.folder.parents[1]}."


def _load(path: Path) -> str | None:
    """Load one library; the reason if that was not possible."""
    if not path.is_file():
        return f"not built, {path.name} is missing"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} did not load ({error})"
    return None


def _why_no_triton(mode: str) -> str | None:
    if mode in ("compiled", "reference"):
        return f"INTERNIMAGE_OPS={mode}"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without GPU support"
    return None if triton_version() else "Triton is not installed"


def triton_version() -> str | None:
    """Version of the installed Triton, without importing it."""
    for name in ("triton", "pytorch-triton-rocm", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


LIBRARIES = Libraries(read_mode(), Path(__file__).resolve().parent)
