"""Description of exported files: their inputs and outputs, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.files import readable_size
from src.models.graphs import Graph


def card(
    graphs: Sequence[Graph],
    files: Sequence[Path],
    class_names: Sequence[str],
    images: Mapping[str, Any],
    task: str,
) -> str:
    """Text of ``EXPORT.md``.

    Args:
        graphs: The exported graphs.
        files: The files.
        class_names: Names in label order.
        images: How images are prepared.
        task: Task of the network.
    """
    settings = "\n".join(f"- {name}: {value}" for name, value in images.items())
    tables = "\n\n".join(_table(graph) for graph in graphs)
    listed = "\n".join(f"- `{path.name}` ({readable_size(path.stat().st_size)})" for path in files)
    names = "\n".join(f"{number} {name}" for number, name in enumerate(class_names))
    return f"""# InternImage for {task}, exported

{listed}

ONNX files hold standard operators only. `.pt2` files are read by `torch.export.load`
after `import src.ops`; `.aoti.pt2` files by `torch._inductor.aoti_load_package`, on the same kind
of processor. Axes that a table shows as a letter may have any size.

{tables}

## Preparing images

RGB, divided by 255, minus the mean, divided by the standard deviation:

{settings}

## Running

{_running(graphs[0], files)}

## Classes

```
{names}
```
"""


def _running(graph: Graph, files: Sequence[Path]) -> str:
    """Lines of Python that run the first file of every format."""
    shape, names = tuple(graph.inputs["image"].shape), list(graph.outputs)
    written = {path.name for path in files}
    blocks = {
        f"{graph.name}.onnx": f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{graph.name}.onnx")
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
