"""``EXPORT.md`` of files with raw outputs: their inputs and outputs, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.export.card import card, opening, operators
from src.export.description import Description
from src.models.graphs import Graph


def raw_card(
    graphs: Sequence[Graph],
    files: Sequence[Path],
    description: Description,
    library: str | None = None,
) -> str:
    """Text of ``EXPORT.md``.

    Args:
        graphs: The exported graphs.
        files: The files.
        description: Task, classes and preprocessing.
        library: Name of the library that ONNX files need.
    """
    tables = "\n\n".join(_table(graph) for graph in graphs)
    content = f"""ONNX files hold {operators(library)}. `.pt2` files are read by
`torch.export.load` after `import src.ops` of the project above; `.aoti.pt2` files by
`torch._inductor.aoti_load_package`, on the same kind of processor. Axes that a table shows as a
letter may have any size.

{tables}

## Running

{_running(graphs[0], files, library)}"""
    return card(
        description,
        files,
        content,
        "RGB, divided by 255, minus the mean, divided by the standard deviation:",
    )


def _running(graph: Graph, files: Sequence[Path], library: str | None) -> str:
    """Lines of Python that run the first file of every format."""
    shape, names = tuple(graph.inputs["image"].shape), list(graph.outputs)
    written = {path.name for path in files}
    opened = "\n".join(opening(f"{graph.name}.onnx", library))
    blocks = {
        f"{graph.name}.onnx": f"""import numpy as np
import onnxruntime

{opened}
image = np.zeros({shape}, np.float32)  # a prepared image
outputs = dict(zip({names!r}, session.run(None, {{"image": image}})))""",
        f"{graph.name}.pt2": f"""import torch
import src.ops

program = torch.export.load("{graph.name}.pt2").module()
outputs = program(image=torch.zeros({shape}))  # a prepared image; gives {names!r}""",
        f"{graph.name}.aoti.pt2": f"""import torch
import src.ops

program = torch._inductor.aoti_load_package("{graph.name}.aoti.pt2")
outputs = program(image=torch.zeros({shape}))  # a prepared image; gives {names!r}""",
    }
    return "\n\n".join(
        f"```python\n{text}\n```" for name, text in blocks.items() if name in written
    )


def _table(graph: Graph) -> str:
    rows = [
        f"| `{name}` | in | {_shape(graph, name)} | {graph.meanings[name]} |"
        for name in graph.inputs
    ]
    rows += [f"| `{name}` | out | | {graph.meanings[name]} |" for name in graph.outputs]
    head = f"## {graph.name}\n\n| name | | shape | meaning |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows)


def _shape(graph: Graph, name: str) -> str:
    free, shape = graph.dynamic[name], graph.inputs[name].shape
    # Images and feature maps have four axes, lists of regions fewer.
    letters = {0: "N", 2: "H", 3: "W"} if len(shape) == 4 else {0: "R"}
    sizes = [letters[axis] if axis in free else str(size) for axis, size in enumerate(shape)]
    return "(" + ", ".join(sizes) + ")"
