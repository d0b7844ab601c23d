"""Section of ``EXPORT.md`` about files with raw outputs: their inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.export.library import operators
from src.models.graphs import Graph, RegionResult

FORMATS = {"onnx": "ONNX", "pt2": "torch.export", "aoti": "AOTInductor"}
"""Name of each format."""
_ENDS = {".aoti.pt2": "aoti", ".pt2": "pt2", ".onnx": "onnx"}
_IMPORT = "import src.ops"


def formats_of(paths: Sequence[Path]) -> list[str]:
    """Formats of files, in the order of `FORMATS`; other files have none."""
    found = {
        next((kind for end, kind in _ENDS.items() if path.name.endswith(end)), None)
        for path in paths
    }
    return [kind for kind in FORMATS if kind in found]


def raw_section(graphs: Sequence[Graph], files: Sequence[Path], library: str | None = None) -> str:
    """Section of ``EXPORT.md`` about files with raw outputs.

    Args:
        graphs: The exported graphs.
        files: The files.
        library: Name of the library that ONNX files need.
    """
    written = formats_of(files)
    tables = "\n\n".join(_table(graph) for graph in graphs)
    return f"""## {" and ".join(FORMATS[kind] for kind in written)}

{_formats(written, library)}
Axes that a table shows as a letter may have any size{_smallest(graphs[0])}.

{tables}"""


def _smallest(graph: Graph) -> str:
    """Limit of the sides of an image, if the network reads more than one cell of its last level."""
    if not isinstance(graph.result, RegionResult):
        return ""
    return f"; the sides of an image at least {3 * graph.result.divisor} pixels in `.pt2` files"


def _formats(written: Sequence[str], library: str | None) -> str:
    """What reads the files of these formats."""
    imported = (
        f"after `{_IMPORT}` of the project above, or\n`import dcnv3_ops`, the package of its"
        " operators (`packaging/dcnv3_ops`)"
    )
    lines = {
        "onnx": f"ONNX files hold {operators(library)}.",
        "pt2": f"`.pt2` files are read by `torch.export.load` {imported}.",
        "aoti": "`.aoti.pt2` files are read by `torch._inductor.aoti_load_package` "
        f"{imported},\non the same kind of processor.",
    }
    return "\n".join(lines[kind] for kind in written)


def _table(graph: Graph) -> str:
    rows = [
        f"| `{name}` | in | {_shape(graph, name)} | {graph.meanings[name]} |"
        for name in graph.inputs
    ]
    rows += [f"| `{name}` | out | | {graph.meanings[name]} |" for name in graph.outputs]
    head = f"### {graph.name}\n\n| name | | shape | meaning |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows)


def _shape(graph: Graph, name: str) -> str:
    free, shape = graph.dynamic[name], graph.inputs[name].shape
    # Images and feature maps have four axes, lists of regions fewer.
    letters = {0: "N", 2: "H", 3: "W"} if len(shape) == 4 else {0: "R"}
    sizes = [letters[axis] if axis in free else str(size) for axis, size in enumerate(shape)]
    return "(" + ", ".join(sizes) + ")"
