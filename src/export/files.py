"""Write a graph to disk: as ONNX, as a torch.export program, or compiled by AOTInductor."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from src import files
from src.errors import UserError
from src.models.graphs import Graph

OPSET = 18
STANDARD_DOMAINS = ("", "ai.onnx")
_LARGEST_SINGLE_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB
_INSTALL = 'pip install -c constraints.txt -e ".[export]"'


def trace(graph: Graph) -> ExportedProgram:
    """Trace a graph with dynamic batch and image sizes."""
    with torch.no_grad(), _silence():
        return torch.export.export(
            graph.module,
            (),
            kwargs=graph.inputs,
            dynamic_shapes=graph.dynamic,
            strict=False,
        )


def write_onnx(graph: Graph, program: ExportedProgram, folder: Path) -> Path:
    """Write ``<name>.onnx``, which has standard operators only and is checked by onnx.

    Args:
        graph: The graph.
        program: Its `trace`.
        folder: Where to write. Weights of more than 1.9 GB are in a file of their own,
            ``<name>.onnx.data``.

    Returns:
        The file.

    Raises:
        UserError: If onnx is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX files need the optional packages: {_INSTALL}") from error
    from src.export.onnx_operators import TRANSLATIONS

    path = folder / f"{graph.name}.onnx"
    size = sum(p.numel() * p.element_size() for p in graph.module.parameters())
    with torch.no_grad(), _silence():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
        exported.save(path, external_data=size > _LARGEST_SINGLE_FILE)
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(path)
    foreign = {node.domain for node in model.graph.node} - set(STANDARD_DOMAINS)
    if foreign or model.functions:
        raise RuntimeError(f"{path} has operators that are not standard: {sorted(foreign)}")
    return path


def write_program(graph: Graph, program: ExportedProgram, folder: Path) -> Path:
    """Write ``<name>.pt2`` for `torch.export.load`; running it needs ``import src.ops``."""
    path = folder / f"{graph.name}.pt2"
    with _silence():
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
        with torch.no_grad(), _silence():
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


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress progress output and warnings of the exporters; errors are still raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
