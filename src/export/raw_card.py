"""``EXPORT.md`` of files with raw outputs: their inputs and outputs, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.export.card import card, opening, operators
from src.export.description import Description
from src.export.preparation import described, is_known, opened, prepared
from src.models.graphs import Graph, RegionResult

_IMPORT = "import src.ops"


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
    content = f"""{_formats(files, library)}
Axes that a table shows as a letter may have any size{_smallest(graphs[0])}.

{tables}

## Running

{_running(graphs[0], files, description, library)}"""
    preprocessing = described(graphs[0].result, description.preprocessing)
    return card(description, files, content, preprocessing)


def _smallest(graph: Graph) -> str:
    """Limit of the sides of an image, if the network reads more than one cell of its last level."""
    if not isinstance(graph.result, RegionResult):
        return ""
    return f"; the sides of an image at least {3 * graph.result.divisor} pixels in `.pt2` files"


def _formats(files: Sequence[Path], library: str | None) -> str:
    """What reads the files."""
    suffixes = {"".join(path.suffixes) for path in files}
    imported = (
        f"after `{_IMPORT}` of the project above, or\n`import dcnv3_ops`, the package of its"
        " operators (`packaging/dcnv3_ops`)"
    )
    lines = {
        ".onnx": f"ONNX files hold {operators(library)}.",
        ".pt2": f"`.pt2` files are read by `torch.export.load` {imported}.",
        ".aoti.pt2": "`.aoti.pt2` files are read by `torch._inductor.aoti_load_package` "
        f"{imported},\non the same kind of processor.",
    }
    return "\n".join(line for suffix, line in lines.items() if suffix in suffixes)


def _running(
    graph: Graph, files: Sequence[Path], description: Description, library: str | None
) -> str:
    """Scripts that run the first file of every format on a photo."""
    name, outputs = graph.name, ", ".join(graph.outputs)
    session = "\n".join(opening(f"{name}.onnx", library))
    runs = {
        f"{name}.onnx": f"""{session}
{outputs} = session.run(None, {{"image": image}})""",
        f"{name}.pt2": f"""program = torch.export.load("{name}.pt2").module()
with torch.no_grad():
    {outputs} = program(image=torch.from_numpy(image))""",
        f"{name}.aoti.pt2": f"""program = torch._inductor.aoti_load_package("{name}.aoti.pt2")
with torch.no_grad():
    {outputs} = program(image=torch.from_numpy(image))""",
    }
    written = {path.name for path in files}
    photo = _photo(graph, description)
    return "\n\n".join(
        f"```python\n{_imports(name, description)}\n\n{photo}\n{text}\n```"
        for name, text in runs.items()
        if name in written
    )


def _imports(name: str, description: Description) -> str:
    is_onnx = name.endswith(".onnx")
    lines = ["import numpy as np", "import onnxruntime" if is_onnx else "import torch"]
    if is_known(description.preprocessing):
        lines.append(f"from PIL import Image{', ImageOps' * description.upright}")
    return "\n".join(lines if is_onnx else [*lines, f"\n{_IMPORT}  # or dcnv3_ops"])


def _photo(graph: Graph, description: Description) -> str:
    """Lines that prepare ``image``, from a photo if the preprocessing is known."""
    settings = description.preprocessing
    if not is_known(settings):
        return f"image = np.zeros({tuple(graph.inputs['image'].shape)}, np.float32)  # prepared"
    lines = [*opened(upright=description.upright), *prepared(graph.result, settings)]
    return "\n".join(['path = "photo.jpg"', *lines])


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
