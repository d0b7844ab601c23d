"""``EXPORT.md``: the description of exported files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src import files
from src.export.description import Description
from src.export.names import RESULT_FILE
from src.export.preparation import described, read_by_caller
from src.export.raw_card import FORMATS, formats_of
from src.export.script import SCRIPTS, running
from src.models.graphs import ClassResult, LabelMapResult, RegionResult, Result
from src.project import origin

_CHECK = "Check: "
"""Beginning of the line that says how the check of the files ended."""
_STEPS: dict[type, str] = {
    ClassResult: "resizes, crops and normalises",
    RegionResult: "resizes, normalises and pads",
}
"""Preprocessing in words, where it is more than resizing and normalising."""


def note_check(path: Path, verdict: str) -> None:
    """Write into ``EXPORT.md`` how the check of the files ended.

    Args:
        path: The file.
        verdict: On one line.
    """
    lines = path.read_text("utf-8").splitlines()
    noted = [f"{_CHECK}{verdict}" if line.startswith(_CHECK) else line for line in lines]
    files.write_text(path, "\n".join(noted) + "\n")


def card(
    description: Description,
    paths: Sequence[Path],
    result: Result | None,
    sections: Sequence[str],
    *,
    inside: bool,
) -> str:
    """Text of ``EXPORT.md``: one for the files of all formats.

    Args:
        description: Task, classes and preprocessing.
        paths: The files, with their scripts.
        result: What the network predicts.
        sections: Inputs and outputs of the files of some formats, with a heading.
        inside: Whether preprocessing is part of ``model.onnx``.
    """
    listed = "\n".join(
        f"- `{path.name}` ({files.readable_size(path.stat().st_size)})" for path in paths
    )
    settings = "\n".join(f"- {name}: {value}" for name, value in description.settings.items())
    parts = "\n\n".join(sections)
    return f"""# InternImage for {description.task}, exported

Written by `python -m src export` of {origin()}.

{_CHECK}not done; `--check FOLDER` compares the files with PyTorch on images.

{listed}

## Running

{_running(paths, result)}

{parts}

## Preprocessing

{_preprocessing(paths, result, description, inside=inside)}

{settings}

## Classes

{_classes(description)}
"""


def formats_without_script(paths: Sequence[Path]) -> list[str]:
    """Names of the formats of files, in the order of `FORMATS`, that have no script beside them."""
    names = {path.name for path in paths}
    return [FORMATS[kind] for kind in formats_of(paths) if SCRIPTS[kind] not in names]


def _running(paths: Sequence[Path], result: Result | None) -> str:
    """How to run the scripts, and which files have none."""
    names = {path.name for path in paths}
    scripted = [kind for kind in formats_of(paths) if SCRIPTS[kind] in names]
    texts = [running(scripted, result)] if result is not None and scripted else []
    bare = formats_without_script(paths)
    if bare:
        whole = "`--format onnx` without `--outputs raw` writes one file that does, with a script."
        if scripted:
            whole = f"`{RESULT_FILE}` does."
        texts.append(
            f"There is no script for the files of {' and '.join(bare)}: none of them alone leads to"
            f" a result.\n`docs/export.md` of the project says how to join them. {whole}"
        )
    return "\n\n".join(texts)


def _preprocessing(
    paths: Sequence[Path], result: Result | None, description: Description, *, inside: bool
) -> str:
    """Which files prepare images, and how it is done for the others."""
    steps = _STEPS.get(type(result), "resizes and normalises")
    part = f"Part of `{RESULT_FILE}`: it {steps} RGB images of 8 bits."
    if not isinstance(result, ClassResult):
        is_map = isinstance(result, LabelMapResult)
        what = "a few pixels" if is_map else "detections near the smallest score"
        part += (
            " It rounds some grey values differently from\n`python -m src predict`, so its results"
            f" differ slightly: {what} may be others."
        )
    how = described(result, description.preprocessing)
    names = {path.name for path in paths}
    script = next((name for name in SCRIPTS.values() if name in names), None)
    parts = [
        "No file does this; do it first in your program:\n\n"
        + read_by_caller(script, upright=description.upright)
    ]
    if inside:
        parts.append(part)
    if not inside or formats_of(paths) != ["onnx"]:
        parts.append(f"Not part of the {'other ' if inside else ''}files. {how}")
    return "\n\n".join(parts)


def _classes(description: Description) -> str:
    """Class numbers and names, with the numbers of the user's label maps if they differ."""
    own = description.own_numbers
    names = list(enumerate(description.class_names))
    if own is None:
        listed = "\n".join(f"{number} {name}" for number, name in names)
        return f"Numbers in the results, and names:\n\n```\n{listed}\n```"
    rows = "\n".join(f"| {number} | {own[number]} | {name} |" for number, name in names)
    return (
        "The classes count from 0; the label maps of the training have other numbers."
        f" `np.array({list(own)})[label_map]`\ngives these.\n\n"
        "| number in the results | number in the label maps of the training | class |\n"
        f"| ---: | ---: | --- |\n{rows}"
    )
