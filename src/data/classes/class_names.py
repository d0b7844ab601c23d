"""Labels of class folders, and readable names of classes.

A label belongs to a folder name, so a split may lack a class. The readable name of a synset
(``n01440764``) is its first WordNet lemma, as listed by timm's ``ImageNetInfo``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.formats.image_files import list_class_folders
from src.errors import UserError, counted

_SYNSET = re.compile(r"n\d{8}")
_ROW = re.compile(r"(\d{1,9})(?:\s*[,;:=|.)]\s*(?=\D)|\s+)(.+)")  # a number and a name
_NUMBERED = re.compile(r"\d+(?:\s*[,;:=|.)]\s*(?=\D)|\s+)(.+)")
_FILE_SUFFIXES = (".txt", ".csv", ".tsv", ".names", ".list", ".json", ".yaml", ".yml")
_NUMBER_HEADERS = ("#", "id", "idx", "index", "label", "no", "number", "value")


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset in label order.

    Attributes:
        folders: Folder name of each label; empty if only readable names are known, as in prediction
            without a dataset.
        names: Readable name of each label.
    """

    folders: tuple[str, ...]
    names: tuple[str, ...]


def resolve_classes(
    root: str | Path,
    class_names: Sequence[str] | str | None = None,
    splits: Sequence[str] = ("train", "val"),
) -> ClassSet:
    """Find the classes of a dataset in ``root/train``, or in ``root/val`` if that has none.

    Given names that include every class folder are folder names in label order (there may be more
    names than folders). Other given names are readable names for the sorted folders, one each. If
    there are no folders, the given names are used as they are.

    Args:
        root: Dataset folder with ``train/<class>`` and ``val/<class>``.
        class_names: Names, a text file (see `read_class_names`), ``"imagenet-1k"``, or None for
            the folder names.
        splits: Folders under ``root``; the first one that has class folders is used.

    Returns:
        The classes in label order.

    Raises:
        UserError: If there are neither folders nor names, or they do not match.
    """
    folders = _folders(Path(root), splits)
    if class_names is None:
        if not folders:
            raise UserError(_no_classes(Path(root), splits))
        return ClassSet(tuple(folders), readable_names(folders))
    if class_names == "imagenet-1k":
        names = imagenet_synsets()
    else:
        names = read_class_names(class_names, keyword="imagenet-1k")
    if not folders:
        return ClassSet(tuple(names), readable_names(names))
    if set(folders) <= set(names):
        return ClassSet(tuple(names), readable_names(names))
    # If a name is the name of another folder, the list is in label order but incomplete.
    moved = any(n in folders and n != folder for n, folder in zip(names, folders, strict=False))
    if len(names) == len(folders) and not moved:
        return ClassSet(tuple(folders), tuple(names))
    missing = next(folder for folder in folders if folder not in set(names))
    raise UserError(
        f"class_names has {counted(len(names), 'name')} but {root} has"
        f" {counted(len(folders), 'class folder')}, and the folder {missing!r} is not"
        " among the names. Give one name per folder (sorted by folder name), or the"
        " full list of folder names in label order."
    )


def read_class_names(
    class_names: Sequence[str] | str, keyword: str = "", first: int | None = None
) -> list[str]:
    """Read class names from a list or from a text file.

    The file has one name per line in label order, or is a table of numbers and names (``0,road``),
    with or without a header, whose numbers begin at 0 or 1 and have no gaps.

    Args:
        class_names: The names or the file.
        keyword: Name of a dataset that the caller accepts in place of a file, for the error.
        first: Number of the first class in a table; ``None`` accepts 0 and 1.

    Raises:
        UserError: If the file is missing or unreadable, there are no names, a name occurs twice, or
            the file is another table.
    """
    if isinstance(class_names, str):
        path = Path(class_names)
        if not path.is_file():
            other = f', a text file with one name per line, or "{keyword}"'
            raise UserError(
                f"class_names names the file {class_names}, which does not exist; expected a list "
                f"of names{other if keyword else ' or a text file with one name per line'}."
            )
        lines, origin = _lines(path), f"The class names file {path}"
        numbers = _table(lines)
        expected = "0 or 1" if first is None else str(first)
        begin = min(numbers, default=0) if first is None else first
        if numbers and begin in (0, 1) and list(numbers) == [*range(begin, begin + len(numbers))]:
            names = list(numbers.values())
        elif row := lines[0] if numbers else _line_of_table(lines):
            raise UserError(
                f"{origin} is a table: line {row[0]} is {row[1]!r}. Expected one name per line in "
                f"label order, or a table of numbers (from {expected}, without gaps) and names."
            )
        else:
            names = [line for _, line in lines]
    else:
        names, origin = [str(name) for name in class_names], "class_names"
    if not names:
        raise UserError(f"{origin} holds no names; give at least one.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"{origin} holds the name {twice[0]!r} more than once; every class needs its own name."
        )
    return names


def read_class_table(path: str | Path) -> dict[int, str]:
    """Name of each number in a table of numbers and names, by number; empty if it is no table.

    Raises:
        UserError: If the file is unreadable.
    """
    return _table(_lines(Path(path)))


def class_names_of_option(given: Sequence[str], first: int | None = None) -> list[str]:
    """Class names of ``--class-names``: the names, or a text file, see `read_class_names`.

    Raises:
        UserError: If a file is given that does not exist or is no list of names.
    """
    if len(given) > 1 or not given:
        return read_class_names(given)
    name = given[0]
    if Path(name).is_file():
        return read_class_names(name, first=first)
    if Path(name).suffix.lower() in _FILE_SUFFIXES or {"/", os.sep} & set(name):
        raise UserError(
            f"--class-names: the file {name} does not exist; expected names in label order, or a"
            " text file with one name per line."
        )
    return read_class_names(given)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines with text, and their numbers."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"The class names file {path} is not UTF-8 text; write one name per line."
        ) from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _table(lines: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Name of each number, by number, if the lines are rows of these two columns; else empty."""
    header, rows = _split_header([text for _, text in lines])
    separator = next((mark for mark in "\t,;" if mark in header), None)
    found = [match for row in rows if (match := _ROW.fullmatch(row))]
    names = [match[2].strip().strip('"') for match in found]
    numbers = {int(match[1]) for match in found}
    is_table = len(found) == len(rows) == len(numbers) == len(set(names)) > 1
    # Further columns, such as colours.
    has_more = any(re.search(r'[\t,;|"]|\b\d+(?!\S)', name) for name in names)
    has_more |= header != "" and len(header.split(separator)) != 2
    if not is_table or has_more or not all(names):
        return {}
    return dict(sorted((int(m[1]), name) for m, name in zip(found, names, strict=True)))


def _split_header(texts: list[str]) -> tuple[str, list[str]]:
    """The header of a table, empty if there is none, and the other lines."""
    first_word = re.split(r"[\s,;:|]", texts[0].lower(), maxsplit=1)[0] if texts else ""
    return (texts[0], texts[1:]) if first_word in _NUMBER_HEADERS else ("", texts)


def _line_of_table(lines: Sequence[tuple[int, str]]) -> tuple[int, str] | None:
    """The first line that is a row of a table instead of a name, with its number.

    Lines with a tab are rows, and so are all lines if each begins with a number and another name
    follows (``1 sky``, ``2: road``); the first line may be a header. ``1 euro`` and ``2 euro`` are
    names.
    """
    for line in lines:
        if "\t" in line[1]:
            return line
    _, rows = _split_header([text for _, text in lines])
    found = [_NUMBERED.fullmatch(text) for text in rows]
    rest = [match[1] for match in found if match]
    is_table = len(rest) == len(rows) > 1 and len(set(rest)) == len(rest)
    return lines[0] if is_table else None


def readable_names(folders: Sequence[str]) -> tuple[str, ...]:
    """First lemma of each synset if all folders are synsets, else the folder names.

    Synsets that share their first lemma (the two cranes) are told apart by the synset in brackets.
    """
    if not folders or not all(_SYNSET.fullmatch(folder) for folder in folders):
        return tuple(folders)
    # Imported here, because importing timm takes seconds and most datasets do not need it.
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    try:
        lemmas = [
            info.label_name_to_description(folder).split(",")[0].strip() for folder in folders
        ]
    except KeyError:  # looks like a synset, but is not one of ImageNet's
        return tuple(folders)
    count = Counter(lemmas)
    return tuple(
        f"{lemma} ({folder})" if count[lemma] > 1 else lemma
        for lemma, folder in zip(lemmas, folders, strict=True)
    )


def imagenet_synsets() -> list[str]:
    """The 1000 synsets of ImageNet-1k in label order."""
    from timm.data.imagenet_info import ImageNetInfo

    return [str(name) for name in ImageNetInfo("imagenet-1k").label_names()]


def _folders(root: Path, splits: Sequence[str]) -> list[str]:
    for split in splits:
        if (root / split).is_dir():
            folders = list_class_folders(root / split)
            if folders:
                return folders
    return []


def _no_classes(root: Path, splits: Sequence[str]) -> str:
    tree = "expected " + " and ".join(f"{root}/{split}/<class>/*.jpg" for split in splits)
    if not root.exists():
        return (
            f"The data folder {root} does not exist; {tree}. Give its folder with"
            " --data.root, or draw a small dataset: `python -m src prepare toy --root data/toy`."
            " Without data, predict needs data.class_names (imagenet-1k for published classifiers)."
        )
    if not root.is_dir():
        return f"The data folder {root} is a file; {tree}. Set data.root to their parent."
    found = ", ".join(sorted(child.name for child in root.iterdir())[:5]) or "nothing"
    return (
        f"The data folder {root} has no class folders in {' or '.join(splits)} (it holds: "
        f"{found}); {tree}. Set data.root, or data.train_split and data.val_split to the names of "
        "the folders."
    )
