"""Write a graph to disk: as ONNX, as a torch.export program, or compiled by AOTInductor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from src import files
from src.errors import UserError
from src.export.description import Description
from src.export.library import COPY, DOMAIN
from src.export.names import RESULT_FILE
from src.export.packages import silence
from src.models.graphs import Graph, RegionResult

OPSETS = {"deformconv": 20, "gridsample": 18, "gather": 18, "native": 20}
"""Form of DCNv3 in an ONNX file, see ``operators/``, and the opset that it needs."""
NATIVE = "native"
"""The form that needs our library."""
"""Folder of the exported networks, by the names of their runs."""
STANDARD_DOMAINS = ("", "ai.onnx")
LARGEST_SINGLE_FILE = 1_900_000_000
"""Bytes of weights that an ONNX file may hold; protobuf ends at 2 GiB."""
_STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Metadata of nodes with the paths of source files on the machine that exports."""


def trace(graph: Graph) -> ExportedProgram:
    """Trace a graph with dynamic batch and image sizes."""
    with torch.no_grad(), silence():
        return torch.export.export(
            graph.module,
            (),
            kwargs=graph.inputs,
            dynamic_shapes=graph.dynamic,
            strict=False,
        )


def to_onnx(graph: Graph, program: ExportedProgram, dcn: str = "deformconv") -> Any:
    """Convert a graph to ONNX.

    Args:
        graph: The graph.
        program: Its `trace`.
        dcn: Form of DCNv3, one of `OPSETS`. For `NATIVE`, the graph is one of a network
            `with_fused_blocks`.

    Returns:
        A `torch.onnx.ONNXProgram`, for `save_onnx`.
    """
    from src.export.operators import translations

    with torch.no_grad(), silence():
        return torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSETS[dcn],
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            custom_translation_table=translations(dcn),
            verbose=False,
        )


def save_onnx(exported: Any, path: Path, dcn: str = "deformconv") -> Path:
    """Write an ONNX file, which is checked by onnx and has standard operators only.

    Args:
        exported: Result of `to_onnx`.
        path: The file. Weights of more than 1.9 GB are in a file of their own, ``<path>.data``.
        dcn: Form of DCNv3; `NATIVE` allows the operators of our library.

    Returns:
        The file.
    """
    import onnx

    for node in exported.model.graph.all_nodes():
        node.metadata_props.pop(_STACK_TRACE, None)
    weights = exported.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    with silence():
        exported.save(path, external_data=size > LARGEST_SINGLE_FILE)
    model = read_onnx(path, weights=False)
    onnx.checker.check_model(path)
    allowed = {*STANDARD_DOMAINS, *([DOMAIN] if dcn == NATIVE else [])}
    foreign = {node.domain for node in model.graph.node} - allowed
    if foreign or model.functions:
        raise RuntimeError(f"{path} has operators that are not standard: {sorted(foreign)}")
    return path


def read_onnx(path: Path, *, weights: bool = True) -> Any:
    """Read an ONNX file that this module has written, as an ``onnx.ModelProto``.

    Args:
        path: The file.
        weights: Whether to read the weights in ``<path>.data`` too, if there is such a file.
    """
    import onnx

    return onnx.load(path, load_external_data=weights)


def write_onnx(
    graph: Graph, program: ExportedProgram, folder: Path, dcn: str = "deformconv"
) -> Path:
    """Write ``<name>.onnx``; see `to_onnx` and `save_onnx`."""
    exported = to_onnx(graph, program, dcn)
    if dcn == NATIVE:
        exported.model.metadata_props["library"] = COPY
    return save_onnx(exported, folder / f"{graph.name}.onnx", dcn)


def write_result(
    graphs: Sequence[Graph],
    programs: Sequence[ExportedProgram],
    folder: Path,
    description: Description,
    *,
    dcn: str = "deformconv",
    inside: bool = True,
    masks: str = "box",
) -> Path:
    """Write ``model.onnx``: a whole network from image to result.

    Args:
        graphs: Graphs of the network.
        programs: The `trace` of each graph.
        folder: Where to write.
        description: What the metadata of the file say.
        dcn: Form of DCNv3, one of `OPSETS`.
        inside: Whether preprocessing is part of the file.
        masks: See `src.export.results.assemble`.

    Returns:
        The file.
    """
    parts = {
        graph.name: to_onnx(graph, program, dcn)
        for graph, program in zip(graphs, programs, strict=True)
    }
    from src.export.results import assemble

    settings = description.preprocessing if inside else None
    model = assemble(
        graphs,
        {name: part.model for name, part in parts.items()},
        len(description.class_names),
        settings,
        masks,
    )
    model.metadata_props.update(description.metadata(inside))
    if dcn == NATIVE:
        model.metadata_props["library"] = COPY
    result = graphs[0].result
    if isinstance(result, RegionResult) and result.mask_threshold is not None:
        model.metadata_props["mask_threshold"] = str(result.mask_threshold)
    return save_onnx(parts[graphs[0].name], folder / RESULT_FILE, dcn)


def write_program(graph: Graph, program: ExportedProgram, folder: Path) -> Path:
    """Write ``<name>.pt2`` for `torch.export.load`; running it needs ``import src.ops``."""
    path = folder / f"{graph.name}.pt2"
    with silence():
        files.write_with(path, lambda file: torch.export.save(program, file))
    return path


def write_compiled(graph: Graph, program: ExportedProgram, folder: Path) -> Path:
    """Write ``<name>.aoti.pt2``: machine code for this kind of processor, run without Python.

    Raises:
        UserError: If there is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    path = folder / f"{graph.name}.aoti.pt2"
    try:
        with torch.no_grad(), silence():
            files.write_with(
                path, lambda file: aoti_compile_and_package(program, package_path=file)
            )
    except InvalidCxxCompiler as error:
        raise UserError(
            "AOTInductor needs a C++ compiler (g++ or clang++), and none was found; leave `aoti` "
            "out of --format."
        ) from error
    return path


WRITERS = {"onnx": write_onnx, "pt2": write_program, "aoti": write_compiled}
