"""``EXPORT.md``: what the descriptions of all exported files have in common."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from src import files
from src.export.description import Description
from src.project import origin

_CHECK = "Check: "
"""Beginning of the line that says how the check of the files ended."""


def note_check(path: Path, verdict: str) -> None:
    """Write into ``EXPORT.md`` how the check of the files ended.

    Args:
        path: The file.
        verdict: On one line.
    """
    lines = path.read_text("utf-8").splitlines()
    noted = [f"{_CHECK}{verdict}" if line.startswith(_CHECK) else line for line in lines]
    files.write_text(path, "\n".join(noted) + "\n")


def operators(library: str | None) -> str:
    """What the operators of ONNX files are, as an object of a sentence.

    Args:
        library: Name of the library that the files need, or ``None``.
    """
    if library is None:
        return "standard operators only"
    return (
        f"standard operators and those of `{library}`: the CPU kernels of InternImage for ONNX "
        f"Runtime 1.22 or later, built for {platform.system()} on {platform.machine()}"
    )


def opening(name: str, library: str | None) -> list[str]:
    """Lines of Python that open an ONNX file of the folder ``FOLDER`` in ONNX Runtime.

    Args:
        name: Name of the file.
        library: See `operators`.
    """
    if library is None:
        return [f'session = onnxruntime.InferenceSession(str(FOLDER / "{name}"))']
    return [
        "options = onnxruntime.SessionOptions()",
        f'options.register_custom_ops_library(str(FOLDER / "{library}"))',
        f'session = onnxruntime.InferenceSession(str(FOLDER / "{name}"), options)',
    ]


def card(description: Description, paths: Sequence[Path], content: str, preprocessing: str) -> str:
    """Text of ``EXPORT.md``.

    Args:
        description: Task, classes and preprocessing.
        paths: The files.
        content: Inputs and outputs, and how to run the files.
        preprocessing: How images are prepared; the settings follow it.
    """
    listed = "\n".join(
        f"- `{path.name}` ({files.readable_size(path.stat().st_size)})" for path in paths
    )
    settings = "\n".join(f"- {name}: {value}" for name, value in description.settings.items())
    return f"""# InternImage for {description.task}, exported

Written by `python -m src export` of {origin()}.

{_CHECK}not done; `--check FOLDER` compares the files with PyTorch on images.

{listed}

{content}

## Preprocessing

{preprocessing}

{settings}

## Classes

{_classes(description)}
"""


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
