"""The text beside exported files: what goes in, what comes out, how to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.export.graphs import Graph

_MEANING = {
    "logits": "scores before the softmax (segmentation: per pixel; boxes: background last)",
    "probabilities": "softmax of the logits",
    "label_map": "index of the best class of every pixel",
    "objectness": "RPN scores of all anchors before the sigmoid, finest level first",
    "offsets": "box offsets (dx, dy, dw, dh), relative to the anchor or to the given box",
    "anchors": "x1, y1, x2, y2 in pixels of the image",
    "boxes": "centre x, centre y, width, height of each query's box over the size of the image",
    "proposals": "pixel of all maps that each query starts from",
    "proposal_scores": "scores that the proposals are chosen by, falling",
    "masks": "mask probabilities of the given classes in their boxes",
    "image": "prepared RGB images, float32",
    "rois": "number of the image in the batch, x1, y1, x2, y2",
    "labels": "class of each box",
}


def card(
    graphs: Sequence[Graph],
    files: Sequence[Path],
    class_names: Sequence[str],
    images: Mapping[str, Any],
    task: str,
) -> str:
    """Text of ``EXPORT.md``.

    Args:
        graphs: What was written.
        files: The files.
        class_names: Names in label order.
        images: How images are prepared.
        task: What the network is for.
    """
    settings = "\n".join(f"- {name}: {value}" for name, value in images.items())
    tables = "\n\n".join(_table(graph) for graph in graphs)
    listed = "\n".join(f"- `{path.name}` ({path.stat().st_size / 1e6:.1f} MB)" for path in files)
    names = "\n".join(f"{number} {name}" for number, name in enumerate(class_names))
    return f"""# InternImage for {task}, exported

{listed}

ONNX files hold standard operators only (opset 18). `.pt2` files are read by `torch.export.load`
after `import src.ops`; `.aoti.pt2` files by `torch._inductor.aoti_load_package`, on the same kind
of processor. Batch and sizes are free where a table shows a letter.

{tables}

## Preparing images

RGB, divided by 255, minus the mean, divided by the deviation:

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
        f"| `{name}` | in | {_shape(graph, name)} | {_meaning(name)} |" for name in graph.inputs
    ]
    rows += [
        f"| `{name}` | out | | {graph.meanings.get(name) or _meaning(name)} |"
        for name in graph.outputs
    ]
    head = f"## {graph.name}\n\n| name | | shape | meaning |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows)


def _shape(graph: Graph, name: str) -> str:
    free = graph.dynamic[name]
    letters = {0: "R" if name in ("rois", "labels") else "N", 2: "H", 3: "W"}
    sizes = [
        letters[axis] if axis in free else str(size)
        for axis, size in enumerate(graph.inputs[name].shape)
    ]
    return "(" + ", ".join(sizes) + ")"


def _meaning(name: str) -> str:
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    return _MEANING.get(name) or f"map of stride {strides[name]}"
