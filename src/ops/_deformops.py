"""Optional package ``deformops`` with GPU kernels of multi-scale deformable attention.

It is imported together with :mod:`src.ops` if PyTorch is built for CUDA, and needs Python 3.12 or
later. float64 always runs in plain PyTorch.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._load import LIBRARIES, OpNotBuiltError

INSTALL_COMMAND = "pip install deformops"


class DeformOps:
    """Availability of the package, and the call of its operator."""

    def __init__(self, mode: str) -> None:
        """Import the package, unless ``mode`` is ``reference``."""
        self.mode = mode
        self.missing = self._import()
        self._has_warned = False

    def _import(self) -> str | None:
        """Import the operator; returns the reason if that is not possible."""
        self._msda: Any = None
        if self.mode == "reference":
            return "INTERNIMAGE_OPS=reference"
        if torch.version.cuda is None:
            return "this PyTorch is built without CUDA"
        try:
            self._msda = importlib.import_module("deformops.registry").msda
        except ModuleNotFoundError as error:
            if error.name == "deformops":
                return "deformops is not installed"
            return f"deformops cannot be imported ({error})"
        except (ImportError, SyntaxError) as error:
            return f"deformops cannot be imported ({error})"
        return None

    def takes(self, value: Tensor) -> bool:
        """Whether the package is used for this tensor."""
        return self.missing is None and value.device.type == "cuda" and value.dtype != torch.float64

    def run(
        self,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        locations: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Run the operator on validated arguments; differentiable."""
        shapes = torch.tensor(spatial_shapes, device=value.device)
        pixels = shapes.prod(1)
        starts = pixels.cumsum(0) - pixels
        out: Tensor = self._msda(value, shapes, starts, locations, weights.to(value.dtype))
        return out

    def on_fallback(self, device_type: str) -> None:
        """Called before the fallback to plain PyTorch: raise or warn once on a GPU."""
        if device_type != "cuda" or self.missing is None or self.mode == "reference":
            return
        if self.mode == "compiled":
            raise OpNotBuiltError(
                f"INTERNIMAGE_OPS=compiled, but multi-scale deformable attention has no compiled "
                f"kernel on cuda: {self.missing}. Install it with `{INSTALL_COMMAND}`."
            )
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"Multi-scale deformable attention runs in plain PyTorch on cuda: {self.missing}. "
                f"`{INSTALL_COMMAND}` (Python 3.12 or later) installs faster kernels that need "
                "less memory; INTERNIMAGE_OPS=reference turns this warning off.",
                UserWarning,
                stacklevel=2,
            )

    def report(self) -> dict[str, str]:
        """Implementation used on each device type, and the reason."""
        cuda = "deformops" if self.missing is None else f"grid_sample ({self.missing})"
        return {"cpu": "grid_sample", "cuda": cuda}


DEFORMOPS = DeformOps(LIBRARIES.mode)
