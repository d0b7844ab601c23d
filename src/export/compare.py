"""Compare exported files with PyTorch on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.export.session import session
from src.models.graphs import Graph

Runner = Callable[[dict[str, Tensor]], list[Tensor]]

TOLERANCE = 1e-4
"""Largest difference of an output that rounding explains."""
LIMITS = {"boxes": 1e-3, "label_map": 1e-3, "masks": 1e-2, "unmatched": 1e-2, "prepared": 2e-2}
"""Limits of results that are not probabilities: pixels, fractions that ties explain, and about one
grey level of the prepared image, because resizes round to whole grey values."""


class Differences:
    """Largest differences by file and output."""

    def __init__(self) -> None:
        self._worst: dict[tuple[str, str], float] = {}
        self._units: dict[tuple[str, str], str] = {}

    def add(
        self, path: Path, found: Mapping[str, float], units: Mapping[str, str] | None = None
    ) -> None:
        """Add the differences of one image.

        Args:
            path: The file.
            found: Difference by output.
            units: Outputs whose differences are fractions that never fail, with their unit.
        """
        for name, value in found.items():
            key = (path.name, name)
            self._worst[key] = larger(self._worst.get(key, 0.0), value)
            if units and name in units:
                self._units[key] = f" of the {units[name]}"

    def is_above(self, key: tuple[str, str]) -> bool:
        """Whether an output of a file differs by more than rounding explains."""
        if ".fp16." in key[0] or ".int8." in key[0]:
            return not math.isfinite(self._worst[key])
        if key in self._units:
            return False
        return not self._worst[key] <= LIMITS.get(key[1], TOLERANCE)

    @property
    def passed(self) -> bool:
        """Whether no output is above its limit."""
        return bool(self._worst) and not any(map(self.is_above, self._worst))

    def table(self) -> str:
        """One line per file and output."""
        return "\n".join(
            f"  {key[0]:<18} {key[1]:<15} {value:.1e}{self._units.get(key, '')}"
            f"{'  ABOVE' if self.is_above(key) else ''}"
            for key, value in self._worst.items()
        )


def larger(a: float, b: float) -> float:
    """The larger one of two differences; NaN, which ``max`` may drop, if one of them is NaN."""
    return a if math.isnan(a) or b <= a else b


def runner(path: Path, threads: int | None = None) -> Runner:
    """Load an exported file.

    Args:
        path: A file that a function of ``src.export.files`` wrote.
        threads: Threads of ONNX Runtime; default is its own choice.

    Returns:
        Function from inputs by name to outputs in order.

    Raises:
        UserError: If ONNX Runtime is not installed.
    """
    if path.suffix == ".onnx":
        return _onnx_runner(path, threads)
    if path.name.endswith(".aoti.pt2"):
        from torch._inductor import aoti_load_package

        package: Any = aoti_load_package(str(path))
        return lambda inputs: _as_list(package(**inputs))
    module = torch.export.load(path).module()
    return lambda inputs: _as_list(module(**inputs))


def _onnx_runner(path: Path, threads: int | None) -> Runner:
    opened = session(path, threads)

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = opened.run(None, {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(output) for output in outputs]

    return run


@torch.no_grad()
def differences(graph: Graph, run: Runner, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of every output between PyTorch and a file.

    For integer outputs it is the fraction of values that differ. If a file selects other indices
    than PyTorch (`Graph.selections`), PyTorch is run again with the selection of the file, so that
    later outputs can be compared; the scores are those of PyTorch's first run.
    """
    found = dict(zip(graph.outputs, run(inputs), strict=True))
    expected = _expected(graph, inputs)
    given = {name: found[name] for name in graph.selections}
    if not all(torch.equal(expected[name], selection) for name, selection in given.items()):
        own = {name: expected[name] for pair in graph.selections.items() for name in pair}
        expected = _expected(graph, inputs | given) | own
    return {name: _difference(expected[name], found[name]) for name in graph.outputs}


def _expected(graph: Graph, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(graph.outputs, _as_list(graph.module(**inputs)), strict=True))


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise RuntimeError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if not a.numel():
        return 0.0
    if not a.is_floating_point():
        return float((a != b).double().mean())
    return float((a.double() - b.double()).abs().max())


def _as_list(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
