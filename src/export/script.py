"""Scripts beside exported files: from the file of an image to its result."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence

from src.decoding import IMAGE_EXTENSIONS, OTHER_IMAGE_EXTENSIONS
from src.export.description import Description
from src.export.drawing import MIN_SCORE, drawing
from src.export.library import opening
from src.export.names import RESULT_FILE
from src.export.preparation import OPENED, RESIZED, accepted_formats, is_known, prepared, reader
from src.models.graphs import ClassResult, Graph, LabelMapResult, QueryResult, RegionResult, Result

SCRIPTS: Mapping[str, str] = {
    "onnx": "predict.py",
    "pt2": "predict_pt2.py",
    "aoti": "predict_aoti.py",
}
"""Name of the script of each format."""
_SUFFIXES = {"onnx": "", "pt2": "_pt2", "aoti": "_aoti"}
"""Ends of the names of the files that the script of a format writes."""
PACKAGES = {"onnx": "onnxruntime numpy pillow", "pt2": "torch numpy pillow"}
PACKAGES["aoti"] = PACKAGES["pt2"]


def result_script(
    result: Result, description: Description, *, inside: bool, masks: str, library: str | None
) -> str:
    """Script for ``model.onnx``, a file from image to result.

    Args:
        result: What the file predicts.
        description: Task, classes and preprocessing.
        inside: Whether preprocessing is part of the file.
        masks: ``box`` or ``image``, see `src.export.results.assemble`.
        library: Name of the library that the file needs.
    """
    shown = drawing(result, masks, description.class_names, description.own_numbers)
    names = ['names = json.loads(metadata["names"])']
    if isinstance(result, LabelMapResult):
        names.append(_PALETTE.format('json.loads(metadata["palette"])'))
    if inside:
        prepare, after = ['inputs = {"image": np.asarray(photo)[None]}'], ""
    else:
        prepare = [*prepared(result, description.preprocessing), *_inputs(result)]
        after = _RESCALED.get(type(result), "")
    return _script(
        "onnx",
        RESULT_FILE,
        description,
        shown,
        opened=opening(RESULT_FILE, library),
        facts=[_METADATA, *names],
        prepare=prepare,
        after=after,
    )


def raw_script(
    kind: str, graph: Graph, description: Description, library: str | None
) -> str | None:
    """Script for a file with raw outputs.

    Args:
        kind: Format, one of `SCRIPTS`.
        graph: What is in the file.
        description: Task, classes and preprocessing.
        library: Name of the library that an ONNX file needs.

    Returns:
        ``None`` if one file does not lead to a result, or the preprocessing is not known.
    """
    result = graph.result
    if result is None or not has_script(graph, description):
        return None
    file = {"onnx": "model.onnx", "pt2": "model.pt2", "aoti": "model.aoti.pt2"}[kind]
    names = [f"names = {json.dumps(list(description.class_names), ensure_ascii=False)}"]
    if isinstance(result, LabelMapResult):
        names.append(_PALETTE.format(json.dumps(description.preprocessing["palette"])))
    after = _FOUND.get(type(result), "")
    if isinstance(result, QueryResult):
        after = after.replace("MAX", str(result.max_detections))
    return _script(
        kind,
        file,
        description,
        drawing(result, "box", description.class_names, description.own_numbers),
        opened=opening(file, library) if kind == "onnx" else _OPENED[kind],
        facts=names,
        prepare=[*prepared(result, description.preprocessing), 'inputs = {"image": image}'],
        after=after,
    ).replace("OUTPUTS", str(graph.outputs))


def has_script(graph: Graph, description: Description) -> bool:
    """Whether a file with raw outputs leads to a result, and how images are prepared is known."""
    is_whole = graph.result is not None and not isinstance(graph.result, RegionResult)
    return is_whole and is_known(description.preprocessing)


def running(kinds: Sequence[str], result: Result) -> str:
    """How to run the scripts of some formats, and what they print and write, for ``EXPORT.md``."""
    commands = "\n".join(
        f"```bash\npip install {PACKAGES[kind]}\npython {SCRIPTS[kind]} photo.jpg\n```\n"
        for kind in kinds
    )
    first, *others = kinds
    shown = [f"`{SCRIPTS[first]}` {_shown(result).replace('SUFFIX', _SUFFIXES[first])}"]
    shown += [
        f"`{SCRIPTS[kind]}` does the same; the names of its files end with `{_SUFFIXES[kind]}`."
        for kind in others
    ]
    native = " and ".join(f"`{SCRIPTS[kind]}`" for kind in kinds if kind != "onnx")
    text = "\n".join(shown)
    return f"""{commands}
{text}

A script takes any number of images and folders, writes into the folder `results`
(`--output FOLDER`), and runs from any folder. It searches folders with their subfolders, without
hidden files and its own results. The names of results that would be the same keep the extension
of the image (`photo.jpg_result.png`), or begin with its folders.

An image that cannot be read leads to a message and, at the end, to exit status 1; the others have
results. Use the script as an example for your own program; `--help` lists its options. It reads
the files that `python -m src predict` reads ({accepted_formats()}), and converts
grey images and those of more than 8 bits to 8-bit RGB as it does.\
{_ALSO.format(native) if native else ""}"""


def _shown(result: Result) -> str:
    if isinstance(result, ClassResult):
        return (
            "prints the best classes with their probabilities, and draws them as bars below the"
            " image, to\n`results/photo_resultSUFFIX.png`."
        )
    colours = "`results/photo_resultSUFFIX.png`,\nin the colours of `python -m src predict`."
    if isinstance(result, LabelMapResult):
        return (
            "prints the number, name and share of each class, and writes\n"
            f"`results/photo_label_mapSUFFIX.png` with the class of every pixel, and {colours}"
        )
    return f"prints the class, score and box of each detection, and writes {colours}"


def _script(
    kind: str,
    file: str,
    description: Description,
    shown: str,
    *,
    opened: list[str],
    facts: list[str],
    prepare: list[str],
    after: str,
) -> str:
    name = SCRIPTS[kind]
    used = "Image, ImageDraw, ImageFont, " + ("ImageOps, " if description.upright else "")
    is_onnx = kind == "onnx"
    has_scores = "min_score" in shown
    installed = [_NOT_INSTALLED.replace("PACKAGES", PACKAGES[kind])]
    lines = [
        f'"""Predict on images with {file}: python {name} IMAGE ...',
        "",
        f"Needs: pip install {PACKAGES[kind]}",
        *([] if is_onnx else [_NEEDED]),
        '"""',
        "",
        "import argparse",
        *(["import colorsys"] if "colorsys" in shown else []),
        *(["import json"] if any("json." in line for line in facts) else []),
        "import os",
        "import sys",
        "from collections import Counter",
        "from pathlib import Path",
        *([] if is_onnx else ["from zipfile import ZipFile"]),
        "",
        "try:",
        "    import numpy as np",
        *(["    import onnxruntime"] if is_onnx else []),
        f"    from PIL import {used}UnidentifiedImageError",
        *installed,
        "",
        "FOLDER = Path(__file__).resolve().parent",
        f"EXTENSIONS = {IMAGE_EXTENSIONS}",
        f"OTHER_EXTENSIONS = {OTHER_IMAGE_EXTENSIONS}",
        *["", "", reader(upright=description.upright)],
        *["", "", _SEARCH],
        *["", "", _SAVE],
        *(["", "", RESIZED] if "resized(" in "".join([*prepare, after]) else []),
        *["", ""],
        _ARGUMENTS.replace("FILE", file),
        *([_MIN_SCORE] if has_scores else []),
        "args = parser.parse_args()",
        *([_IS_SCORE] if has_scores else []),
        _PATHS,
        _HAS_FILE.replace("FILE", file),
        *([] if is_onnx else [_TORCH, *installed, "", _OPERATORS]),
        _OPENED_OR_ERROR.replace("OPENED", textwrap.indent("\n".join(opened), "    ")).replace(
            "FILE", file
        ),
        *facts,
        _SHORT,
        "",
        "for path, stem in zip(images, stems):",
    ]
    steps = [
        OPENED,
        _TITLE,
        *prepare,
        _RUN[is_onnx].replace("FILE", file),
        *([after] if after else []),
        *(["min_score = args.score"] if has_scores else []),
        shown + _SAVED,
    ]
    body = textwrap.indent("\n".join(steps), "    ").replace("SUFFIX", _SUFFIXES[kind])
    return "\n".join([*lines, body, "if status:", "    sys.exit(status)", ""])


def _inputs(result: Result) -> list[str]:
    if isinstance(result, RegionResult):
        return ['inputs = {"image": image, "size": np.array([height, width])}']
    return ["height, width = image.shape[2:]", 'inputs = {"image": image}']


_ARGUMENTS = """\
parser = argparse.ArgumentParser(description="Predict on images with FILE.")
parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="file or folder")
parser.add_argument(
    "--output", type=Path, default="results", metavar="FOLDER", help="for results (%(default)s)"
)"""
_MIN_SCORE = f"""\
parser.add_argument(
    "--score", type=float, default={MIN_SCORE}, help="minimum score of detections (%(default)s)"
)"""
_NOT_INSTALLED = """\
except ImportError as error:
    sys.exit(f"error: {error}; the script needs pip install PACKAGES")"""
_HAS_FILE = """\
if not (FOLDER / "FILE").is_file():
    sys.exit(f"error: there is no FILE in {FOLDER}, the folder of this script")"""
_OPENED_OR_ERROR = """\
try:
OPENED
except Exception as error:
    reason = (str(error) or repr(error)).splitlines()[0]
    sys.exit(f"error: FILE cannot be read (an incomplete copy?): {reason}")"""
_TORCH = """
try:
    import torch  # takes seconds, so after the arguments"""
_IS_SCORE = """\
if not 0 <= args.score <= 1:
    parser.error(f"--score: expected a number from 0 to 1, got {args.score:g}")"""
_SEARCH = """\
def search(folder, results):
    # Files in a folder and its subfolders that are neither hidden nor earlier results.
    is_outer = folder.resolve() in results.resolve().parents
    for file in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        is_result = is_outer and results.resolve() in file.resolve().parents
        if file.is_file() and not is_hidden and not is_result:
            yield file"""
_PATHS = f"""\
images, status = [], 0  # status 1: an image has no result
for path in args.images:
    files, missing = [path] if path.is_file() else [], "is no file"
    if path.is_dir():
        inside = list(search(path, args.output))
        files = [file for file in inside if file.suffix.lower() in EXTENSIONS]
        others = [str(file) for file in inside if file.suffix.lower() in OTHER_EXTENSIONS]
        if others:
            more = ", ..." if others[5:] else ""
            print(f"Left out: {{', '.join(others[:5])}}{{more}} (not {accepted_formats()})")
        missing = "are no images in the folder"
    if not files:
        print(f"error: there {{missing}} {{path}}", file=sys.stderr)
        status = 1
    images += files
if not images:
    sys.exit(status)
paths = {{os.path.abspath(path): path for path in images}}  # each image once
images, stems = list(paths.values()), [path.stem for path in paths.values()]
# Names of results: stems of the images; with extension, then folders, where several are the same.
for depth in range(1, 5):
    count = Counter(stem.lower() for stem in stems)
    longer = ["_".join(Path(path).parts[1:][-depth:]) for path in paths]
    stems = [new if count[old.lower()] > 1 else old for old, new in zip(stems, longer)]
if len({{stem.lower() for stem in stems}}) < len(stems):
    stems = [f"{{number}}_{{stem}}" for number, stem in enumerate(stems, 1)]
place = next(x for x in (args.output, *args.output.absolute().parents) if os.path.exists(x))
if not (os.path.isdir(place) and os.access(place, os.W_OK)):
    sys.exit(f"error: --output {{args.output}}: {{place}} is not a writable folder")"""
_TITLE = """\
if len(images) > 1:
    print(f"{path}:")"""
_SAVE = """\
def save(image, path):
    verb = "Replaced" if path.exists() else "Wrote"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        sys.exit(f"error: {path} cannot be written: {error.strerror or error}")
    print(verb, path)"""
_SHORT = """\
short = [x if len(x) <= 30 else f"{x[:28]}..." for x in names]  # for drawings"""
_METADATA = "metadata = session.get_modelmeta().custom_metadata_map"
_PALETTE = "palette = [tuple(colour) for colour in {}]"
_RUN = {
    True: """\
outputs = [output.name for output in session.get_outputs()]
try:
    found = dict(zip(outputs, session.run(outputs, inputs)))
except Exception as error:
    reason = (str(error) or repr(error)).splitlines()[0]
    print(f"error: FILE does not accept {path}: {reason}", file=sys.stderr)
    status = 1
    continue""",
    False: """\
try:
    with torch.no_grad():
        values = program(**{name: torch.from_numpy(value) for name, value in inputs.items()})
except Exception as error:
    reason = (str(error) or repr(error)).splitlines()[0]
    print(f"error: FILE does not accept {path}: {reason}", file=sys.stderr)
    status = 1
    continue
found = dict(zip(OUTPUTS, (value.numpy() for value in values)))""",
}
"""By whether the file is an ONNX file."""
_ALSO = (
    "\n\nThe operators are needed for {}, too: the package `dcnv3_ops` (`packaging/dcnv3_ops` of"
    " the\nproject above), or that project, installed."
)
_NEEDED = """\
and the operators: the package dcnv3_ops, or the installed project that wrote this file"""
_OPERATORS = """\
try:
    import dcnv3_ops
except ImportError:
    try:
        import src.ops
    except ImportError:
        sys.exit("error: install dcnv3_ops, or the project that wrote this file")"""
_OPENED = {
    "pt2": [
        'ZipFile(FOLDER / "model.pt2").close()  # PyTorch logs a traceback if it is no archive',
        'program = torch.export.load(str(FOLDER / "model.pt2")).module()',
    ],
    "aoti": [
        'ZipFile(FOLDER / "model.aoti.pt2").close()',
        "from torch._inductor import aoti_load_package",
        'program = aoti_load_package(str(FOLDER / "model.aoti.pt2"))',
    ],
}
_RESCALED: dict[type, str] = {
    LabelMapResult: """\
small = Image.fromarray(found["label_map"][0].astype(np.uint8))
found["label_map"] = np.asarray(small.resize(photo.size, Image.NEAREST))[None]""",
    QueryResult: """\
found["boxes"] = found["boxes"] * np.tile(np.divide(photo.size, (width, height)), 2)""",
}
_RESCALED[RegionResult] = _RESCALED[QueryResult]
"""From results in pixels of the prepared image to those of the photo."""
_FOUND: dict[type, str] = {
    LabelMapResult: """\
# The best class of each pixel of the photo, from logits at the size of the prepared image, which
# are resized as in evaluation: bilinear without antialiasing.
logits = [resized(x, photo.size) for x in found["logits"][0, : len(names)]]
found = {"label_map": np.argmax(logits, axis=0)[None]}""",
    QueryResult: """\
# The best pairs of query and class; boxes are centre and size relative to the image.
scores = np.exp(-np.logaddexp(0, -found["logits"][0].ravel()))
index = (-scores).argsort(kind="stable")[:MAX]
query, labels = np.divmod(index, found["logits"].shape[2])
centre, size = found["boxes"][0, query, :2], found["boxes"][0, query, 2:]
corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1).clip(0, 1)
found = {"boxes": corners * np.tile(photo.size, 2), "scores": scores[index], "labels": labels}""",
}
"""From raw outputs to the results of a file from image to result."""
_SAVED = """\
save(result, args.output / f"{stem}_resultSUFFIX.png")"""
