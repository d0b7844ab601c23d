"""List files: one image per line, path and class separated by a tab.

The class is a number (Swin Transformer's ``ILSVRC2011fall_whole_map_train.txt``) or a synset.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.formats.image_files import is_image
from src.errors import UserError


@dataclass(frozen=True)
class ListedImages:
    """Images of a list file that have a class of the dataset.

    Attributes:
        files: Paths, with the root in front of them.
        labels: Class index of each.
        left_out: Number of lines whose class the dataset does not have.
    """

    files: list[str]
    labels: list[int]
    left_out: int


def read_list(
    path: Path, labels: Sequence[int], synsets: Sequence[str], root: str = ""
) -> ListedImages:
    """Read a list file.

    Args:
        path: The file.
        labels: Class index for each number that the file may hold; -1 leaves the image out.
        synsets: Synset of each number.
        root: Folder that the paths are relative to.

    Raises:
        UserError: If the file is missing, or a line is not a path, a tab and a known class.
    """
    if not path.is_file():
        raise UserError(
            f"The list file {path} does not exist; expected one image per line: path, tab, class."
            " `python -m src prepare imagenet22k` writes one from class folders."
        )
    label_of = {str(number): label for number, label in enumerate(labels)}
    label_of |= dict(zip(synsets, labels, strict=True))
    files: list[str] = []
    found: list[int] = []
    left_out = 0
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            name, tab, given = line.rstrip("\r\n").partition("\t")
            given = given.strip()
            if not line.strip():
                continue
            if not tab or given not in label_of or not is_image(name):
                raise UserError(
                    f"Line {number} of {path} is {line.strip()[:120]!r}; expected the path of an"
                    f" image, a tab, and a number below {len(labels)} or a synset of the label set"
                    " (data.list_classes)."
                )
            label = label_of[given]
            if label < 0:
                left_out += 1
                continue
            files.append(os.path.join(root, name))  # noqa: PTH118  millions of paths
            found.append(label)
    if not files:
        raise UserError(f"{path} lists no image of the classes of the dataset (data.classes).")
    return ListedImages(files, found, left_out)
