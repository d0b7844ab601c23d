"""``prepare from-masks``: pictures and label maps of the same names in two folders.

Label maps may hold class numbers, or colours that a table translates (``--colours``). Black and
white masks (0 and 255) become the classes 0 and 1, because 255 means unlabelled everywhere else.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.classes import read_class_names
from src.data.label_maps import MAX_CLASSES, read_label_map
from src.data.own import recipe, split
from src.data.own.colours import Colours, read_colours, read_pixels
from src.data.own.survey import survey
from src.errors import UserError
from src.types import IGNORE_LABEL

_FOLDERS = {"train": "training", "val": "validation"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of pictures, searched at any depth")
    add("--masks", type=Path, required=True, help="folder of label maps in the same subfolders")
    add("--mask-suffix", default=".png", help="end of their names, for .jpg (%(default)s)")
    add("--class-names", nargs="+", help="names in the order of the numbers, or one text file")
    add("--colours", type=Path, help="text file with lines `#rrggbb name` for coloured masks")
    split.add_arguments(parser)
    recipe.add_arguments(parser, "segmentation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, translate, split, write the recipe and tell what to do next.

    Raises:
        UserError: If files are missing or broken, sizes differ, or a value is no class.
    """
    # Imported here, because it brings torch, and `prepare --help` does not need it.
    from src.data.datasets.segmentation_folder import find_pairs

    name, out = split.target(args, args.images)
    pairs = find_pairs(args.images, args.masks, label_suffix=args.mask_suffix)
    if len(pairs) < 3:
        raise UserError(
            f"{args.images} holds {len(pairs)} pictures; at least three are needed: the heads "
            "learn from two at a time, and one is to check with."
        )
    colours = read_colours(args.colours) if args.colours else None
    found = survey([picture for picture, _ in pairs])
    labels = _Labels(pairs, colours, _given_names(args))
    _check_sizes(pairs, found.sizes)
    facts = {"source": str(args.images), "val_share": args.val_share, "seed": args.seed}
    split.start_over(out, ("images", "annotations"), facts)
    chosen = split.split([picture for picture, _ in pairs], args.val_share, args.seed)
    label_of = dict(pairs)
    counts = {}
    for part, pictures in zip(_FOLDERS, chosen, strict=True):
        counts[part] = Counter[int]()
        for picture in map(Path, pictures):
            inside = picture.relative_to(args.images)
            split.place(picture, out / "images" / _FOLDERS[part] / inside, args.mode)
            values = labels.read(label_of[str(picture)])
            path = out / "annotations" / _FOLDERS[part] / inside.with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
            counts[part].update(int(value) for value in np.unique(values))
    print(f"{out}: {len(chosen[0])} training and {len(chosen[1])} validation pictures; showing:")
    for number, label in enumerate(labels.names):
        print(f"  {label}: {counts['train'][number]} + {counts['val'][number]}")
    print(f"Checked: {found}, and all label maps fit them")
    data: dict[str, Any] = {"root": str(out), "class_names": labels.names, "upright": True}
    data["reduce_zero_label"] = False
    if colours:
        data["palette"] = [list(colour) for colour in colours.values]
    recipe.write(
        args, out / f"{name}.yaml", "segmentation", data | {"upright": True}, len(chosen[0])
    )


def _given_names(args: argparse.Namespace) -> list[str] | None:
    if args.class_names and args.colours:
        raise UserError("Give either --class-names or --colours, which names the classes too.")
    if not args.class_names:
        return None
    given: list[str] = args.class_names
    return read_class_names(given[0] if len(given) == 1 and Path(given[0]).is_file() else given)


class _Labels:
    """Reads the label maps of a data set as class numbers from 0, 255 where unlabelled.

    Args:
        pairs: Pictures and their label maps.
        colours: Table for coloured ones.
        names: Class names, if given.
    """

    def __init__(
        self,
        pairs: list[tuple[str, str]],
        colours: Colours | None,
        names: list[str] | None,
    ) -> None:
        self.colours = colours
        self.is_binary = False
        if colours is not None:
            self.names = colours.names
            return
        values = _values([label for _, label in pairs])
        self.is_binary = values in ({0, 255}, {255})
        count = 2 if self.is_binary else max(values - {IGNORE_LABEL}, default=0) + 1
        if count > MAX_CLASSES:
            raise UserError(f"Label maps accept up to {MAX_CLASSES} classes, got {count}.")
        if names is None:
            binary = ["background", "foreground"]
            names = binary if self.is_binary else [f"class {number}" for number in range(count)]
        if len(names) < count:
            raise UserError(
                f"The label maps hold numbers up to {count - 1}, counted from 0, but there are "
                f"{len(names)} class names ({', '.join(names[:5])}). Give {count}, the first one "
                "for number 0."
            )
        self.names = names

    def read(self, path: str) -> NDArray[np.uint8]:
        """Class of every pixel, ``(H, W)``."""
        if self.colours is not None:
            return self.colours.translate(path)
        if self.is_binary:
            return (read_pixels(path) > 0).astype(np.uint8)
        return read_label_map(path, len(self.names))


def _values(paths: list[str]) -> set[int]:
    """All numbers that occur.

    Raises:
        UserError: If a label map holds colours.
    """
    found: set[int] = set()
    for path in paths:
        pixels = read_pixels(path)
        if pixels.ndim == 3:
            shown = {tuple(int(v) for v in colour) for colour in _colours_in(pixels)[:20]}
            lines = "\n".join(f"  #{r:02x}{g:02x}{b:02x} name" for r, g, b in sorted(shown))
            raise UserError(
                f"The label map {path} holds colours. Write a text file that says which colour is "
                f"which class, and give it with --colours; this one has:\n{lines}"
            )
        found |= {int(value) for value in np.unique(pixels)}
    return found


def _colours_in(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.unique(pixels.reshape(-1, 3), axis=0)


def _check_sizes(pairs: list[tuple[str, str]], sizes: dict[str, tuple[int, int]]) -> None:
    for picture, label in pairs:
        with Image.open(label) as mask:
            size = (mask.height, mask.width)
        if size != sizes[picture]:
            height, width = sizes[picture]
            raise UserError(
                f"The picture {picture} is {width}x{height} pixels (upright), but its label map "
                f"{label} is {size[1]}x{size[0]}; they must have the same size."
            )
