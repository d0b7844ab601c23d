"""Write all files of a network, and their description."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from src import files
from src.errors import UserError
from src.export.card import card
from src.export.description import Description
from src.export.drawing import needs_font
from src.export.files import NATIVE, WRITERS, trace, write_onnx, write_result
from src.export.graphs import Graph, graphs_of
from src.export.library import COPY, required_library
from src.export.packages import require
from src.export.precision import CONVERSIONS, check_convertible
from src.export.raw_card import raw_section
from src.export.result_card import result_section
from src.export.script import SCRIPTS, raw_script, result_script
from src.models.detection.rcnn.cascade_roi_head import STAGE_STDS
from src.models.graphs import Result
from src.models.internimage.fused_block import with_fused_blocks
from src.visualization import FONT

_SEVERAL_PASSES = {"tta": "--data.tta false", "window_size": "--model.window_size null"}
"""Settings for several forward passes per image, and how to turn them off."""
_SUFFIXES = {
    "onnx": (".onnx", ".onnx.data", ".fp16.onnx", ".int8.onnx"),
    "pt2": (".pt2",),
    "aoti": (".aoti.pt2",),
}


@dataclass(frozen=True)
class Form:
    """Form of ONNX files.

    Attributes:
        dcn: Form of DCNv3, one of `src.export.files.OPSETS`.
        outputs: ``result`` for one file from image to result, ``raw`` for the graphs.
        preprocessing: Whether it is ``inside`` or ``outside`` of the file.
        masks: See `src.export.results.assemble`.
        precisions: ``float32``, and further files of `src.export.precision`.
    """

    dcn: str = "deformconv"
    outputs: str = "result"
    preprocessing: str = "inside"
    masks: str = "box"
    precisions: Sequence[str] = ("float32",)

    @property
    def inside(self) -> bool:
        """Whether preprocessing is part of the file."""
        return self.preprocessing == "inside"


@dataclass(frozen=True)
class Written:
    """Files of a network.

    Attributes:
        graphs: Files of single graphs.
        results: Files from image to result.
        result: What they predict.
        libraries: Copies of the library that the files need.
        fonts: Copies of the font that the scripts need.
        scripts: Scripts that run the files on an image.
    """

    graphs: list[tuple[Graph, Path]]
    results: list[Path]
    result: Result | None
    libraries: Sequence[Path] = ()
    fonts: Sequence[Path] = ()
    scripts: Sequence[Path] = ()

    @property
    def paths(self) -> list[Path]:
        """All files but the description, with the files of large weights."""
        models = with_weights([*self.results, *(path for _, path in self.graphs)])
        return [*models, *self.libraries, *self.fonts, *self.scripts]

    def moved_to(self, folder: Path) -> Written:
        """The same files in another folder."""
        graphs = [(graph, folder / path.name) for graph, path in self.graphs]
        results = [folder / path.name for path in self.results]
        libraries = [folder / path.name for path in self.libraries]
        fonts = [folder / path.name for path in self.fonts]
        scripts = [folder / path.name for path in self.scripts]
        return Written(graphs, results, self.result, libraries, fonts, scripts)


def write(
    network: nn.Module,
    description: Description,
    folder: Path,
    formats: Sequence[str],
    form: Form,
) -> Written:
    """Write every format, and ``EXPORT.md``.

    Args:
        network: The network with its weights.
        description: Its task, classes and preprocessing.
        folder: Where to write.
        formats: Any of `src.export.files.WRITERS`.
        form: Form of ONNX files.

    Raises:
        UserError: If predictions of the recipe take several forward passes, which one file from
            image to result does not compute, or the form of masks of a network without masks is
            given, a package or the library is missing, or files of another precision cannot be
            written.
    """
    whole = form.outputs == "result" and "onnx" in formats
    is_native = form.dcn == NATIVE and "onnx" in formats
    if whole:
        _check_single_pass(description)
    if "onnx" in formats:
        require("ONNX files", "onnx", "onnxscript")
    graphs = graphs_of(network)
    further = [name for name in form.precisions if name != "float32"] if whole else []
    if further:
        _check_precision(network, is_native)
    if whole and form.masks != "box" and getattr(graphs[0].result, "mask_threshold", None) is None:
        raise UserError(
            f"--masks has no effect: {type(network).__name__} predicts no masks; leave it out."
        )
    libraries = [_copied(required_library(), folder, COPY)] if is_native else []
    traced = _Traces()
    onnx_graphs = graphs_of(with_fused_blocks(network)) if is_native else graphs
    writers: dict[str, Callable[..., Path]] = {**WRITERS, "onnx": partial(write_onnx, dcn=form.dcn)}
    single = [name for name in formats if not (whole and name == "onnx")]
    pairs = []
    for graph, onnx_graph in zip(graphs, onnx_graphs, strict=True):
        for name in single:
            source = onnx_graph if name == "onnx" else graph
            pairs.append((graph, writers[name](source, traced(source), folder)))
    results: list[Path] = []
    if whole:
        path = write_result(
            onnx_graphs,
            [traced(graph) for graph in onnx_graphs],
            folder,
            description,
            dcn=form.dcn,
            inside=form.inside,
            masks=form.masks,
        )
        results = [path, *(CONVERSIONS[name](path) for name in further)]
    scripts = _scripts(graphs[0], description, folder, formats, form)
    fonts = [_copied(FONT, folder)] if scripts and needs_font(description.class_names) else []
    written = Written(pairs, results, graphs[0].result, libraries, fonts, scripts)
    files.write_text(folder / "EXPORT.md", _text(written, description, form, graphs))
    return written


def _scripts(
    graph: Graph, description: Description, folder: Path, formats: Sequence[str], form: Form
) -> list[Path]:
    """Write the script of every format that has one."""
    library = COPY if form.dcn == NATIVE else None
    scripts = []
    for name in formats:
        if name == "onnx" and form.outputs == "result":
            assert graph.result is not None
            text: str | None = result_script(
                graph.result,
                description,
                inside=form.inside,
                masks=form.masks,
                library=library,
            )
        else:
            text = raw_script(name, graph, description, library)
        if text is not None:
            scripts.append(folder / SCRIPTS[name])
            files.write_text(scripts[-1], text)
    return scripts


class _Traces:
    """`trace` of each graph, once."""

    def __init__(self) -> None:
        self._programs: dict[int, ExportedProgram] = {}

    def __call__(self, graph: Graph) -> ExportedProgram:
        if id(graph) not in self._programs:
            self._programs[id(graph)] = trace(graph)
        return self._programs[id(graph)]


def _copied(source: Path, folder: Path, name: str = "") -> Path:
    """The copy of a file in a folder, under the same name by default."""
    copy = folder / (name or source.name)
    files.copy(source, copy)
    return copy


def _check_precision(network: nn.Module, is_native: bool) -> None:
    """Refuse copies in other precisions that cannot be written."""
    if is_native:
        raise UserError(
            "The blocks of --dcn native compute in float32; leave float16 and int8 out of "
            "--precision, or choose another --dcn."
        )
    check_convertible(network)


def possible_names(formats: Sequence[str]) -> list[str]:
    """Names of all files that `write` writes in these formats, for any network and form."""
    stages = range(1, len(STAGE_STDS) + 1)
    graphs = ["model", "backbone", "boxes", "masks", *(f"boxes_{stage}" for stage in stages)]
    suffixes = [suffix for name in formats for suffix in _SUFFIXES[name]]
    library = [COPY] if "onnx" in formats else []
    companions = [*library, *(SCRIPTS[name] for name in formats), FONT.name]
    return [graph + suffix for graph in graphs for suffix in suffixes] + companions


def with_weights(paths: Sequence[Path]) -> list[Path]:
    """Each file, followed by the file of its weights if they are too large to be part of it."""
    pairs = [(path, path.with_name(f"{path.name}.data")) for path in paths]
    return [file for path, data in pairs for file in ((path, data) if data.exists() else (path,))]


def _check_single_pass(description: Description) -> None:
    found = [name for name in _SEVERAL_PASSES if description.preprocessing.get(name)]
    if found:
        changes = " ".join(_SEVERAL_PASSES[name] for name in found)
        raise UserError(
            f"{' and '.join(found)} of this recipe cannot be part of one ONNX file, because they "
            f"need several forward passes for an image; use --outputs raw, or set {changes}."
        )


def _text(written: Written, description: Description, form: Form, graphs: Sequence[Graph]) -> str:
    library = COPY if written.libraries else None
    sections = []
    if written.results and written.result is not None:
        settings = description.preprocessing
        sections.append(
            result_section(
                written.result, settings, inside=form.inside, masks=form.masks, library=library
            )
        )
    if written.graphs:
        paths = [path for _, path in written.graphs]
        sections.append(raw_section(graphs, paths, library))
    inside = form.inside and bool(written.results)
    return card(description, written.paths, written.result, sections, inside=inside)
