"""Run exported graphs, and compare their raw outputs with those of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.export.session import DoesNotRunError, session
from src.models.graphs import Graph

Runner = Callable[[dict[str, Tensor]], list[Tensor]]


def runner(path: Path, threads: int | None = None) -> Runner:
    """Load an exported file.

    Args:
        path: A file that a function of ``src.export.files`` wrote.
        threads: Threads of ONNX Runtime; default is its own choice.

    Returns:
        Function from inputs by name to outputs in order.

    Raises:
        UserError: If ONNX Runtime is not installed.
        DoesNotRunError: By the function, if the file does not run on an input.
    """
    run = _run_by_kind(path, threads)

    def checked(inputs: dict[str, Tensor]) -> list[Tensor]:
        try:
            return run(inputs)
        except Exception as error:  # ONNX Runtime and AOTInductor raise unrelated classes
            shapes = [value.shape for value in inputs.values()]
            raise DoesNotRunError(path, shapes, error) from None

    return checked


def _run_by_kind(path: Path, threads: int | None) -> Runner:
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
def compare_graph(graph: Graph, run: Runner, inputs: dict[str, Tensor]) -> dict[str, float]:
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
