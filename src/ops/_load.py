"""Load the compiled kernels, and warn or raise if one is missing.

``INTERNIMAGE_OPS`` is read once, when :mod:`src.ops` is imported:

* ``auto`` (default): compiled kernels if available, else Triton on a GPU, else plain PyTorch with
  one warning per device type;
* ``compiled``: raise :class:`OpNotBuiltError` if there is no compiled kernel;
* ``triton``: use Triton on a GPU even if a compiled library is built;
* ``reference``: use plain PyTorch without loading anything and without a warning.

The order on a GPU is the same for every dtype. It is not based on measurements, because the two
have not been compared on a GPU yet.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

MODES = ("auto", "compiled", "triton", "reference")
_SUFFIX = ".pyd" if sys.platform == "win32" else ".abi3.so"
LIBRARY_FILES = {"cpu": f"_C{_SUFFIX}", "cuda": f"_C_cuda{_SUFFIX}"}
BUILD_COMMANDS = {
    "cpu": "python setup.py build_ext --inplace",
    "cuda": "SRC_BUILD_CUDA=1 python setup.py build_ext --inplace",
}


class OpNotBuiltError(RuntimeError):
    """The kernel requested by ``INTERNIMAGE_OPS`` (``compiled``, ``triton``) is missing."""


def read_mode() -> str:
    """Value of ``INTERNIMAGE_OPS``; ``ValueError`` if it is not one of :data:`MODES`."""
    mode = os.environ.get("INTERNIMAGE_OPS", "").strip().lower() or "auto"
    if mode not in MODES:
        raise ValueError(f"INTERNIMAGE_OPS must be one of {', '.join(MODES)}, got {mode!r}.")
    return mode


class Libraries:
    """Loaded libraries, and the reason for each device type without one."""

    def __init__(self, mode: str, folder: Path) -> None:
        """Load the libraries in ``folder`` that ``mode`` allows."""
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
        """Implementation for a device type: ``compiled``, ``triton`` or ``reference``."""
        if device_type in LIBRARY_FILES and device_type not in self.missing:
            return "compiled"
        return "triton" if device_type == "cuda" and not self.no_triton else "reference"

    def on_fallback(self, device_type: str) -> None:
        """Called before the fallback to plain PyTorch: raise or warn once."""
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
            "INTERNIMAGE_OPS=reference turns this warning off.",
            UserWarning,
            stacklevel=2,
        )

    def on_older_library(self, device_type: str) -> None:
        """Called before the kernels of DCNv3 are used for DCNv4.

        Raise or warn once if a library is loaded, which then was built from earlier sources.
        """
        key = f"{device_type}, DCNv4"
        if self.kernel(device_type) != "compiled" or key in self._warned:
            return
        reason = f"{LIBRARY_FILES[device_type]} was built before it had kernels of DCNv4"
        if self.mode == "compiled":
            raise OpNotBuiltError(
                f"INTERNIMAGE_OPS=compiled, but {reason}.{self._advice(device_type)}"
            )
        self._warned.add(key)
        warnings.warn(
            f"DCNv4 is slower on {device_type} than it could be, because {reason}; it uses those "
            f"of DCNv3.{self._advice(device_type)}",
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
        for folder in self.folder.parents[:2]:
            if (folder / "setup.py").is_file():
                return f" Build it with `{BUILD_COMMANDS[device_type]}` in {folder}."
        return " Reinstall the package on a machine with a C++20 compiler, for CUDA also with nvcc."


def _load(path: Path) -> str | None:
    """Load one library; returns the reason if that is not possible."""
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


if hasattr(torch.ops.internimage, "dcnv3"):
    raise ImportError(
        f"{__package__} cannot be imported, because another package has registered the operators "
        "of internimage: src.ops (internimage-lightning) and dcnv3_ops (dcnv3-ops) are the same "
        "code; import one of them."
    )

LIBRARIES = Libraries(read_mode(), Path(__file__).resolve().parent)
