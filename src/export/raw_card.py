"""``EXPORT.md`` of files with raw outputs: their inputs and outputs, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.export.card import card, operators
from src.export.description import Description
from src.export.preparation import described
from src.export.script import has_script, running
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

{_running(graphs[0], files, description)}"""
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


def _running(graph: Graph, files: Sequence[Path], description: Description) -> str:
    """How to run the script of every format."""
    written = {"".join(path.suffixes).lstrip(".") for path in files}
    kinds = {"onnx": "onnx", "pt2": "pt2", "aoti.pt2": "aoti"}
    if graph.result is None or not has_script(graph, description):
        return (
            "There is no script for these files: none of them alone leads to a result."
            " `docs/export.md` of the\nproject says how to join them. `--format onnx` without"
            " `--outputs raw` writes one file from image\nto result, with a script."
        )
    return "\n\n".join(
        running(kind, graph.result) for suffix, kind in kinds.items() if suffix in written
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
