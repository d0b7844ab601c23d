"""Coloured label maps: the table of colours and classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data.formats.label_maps import MAX_CLASSES, refuse_floats, stored_values
from src.decoding import MAX_PIXELS, open_image
from src.errors import UserError, counted
from src.types import IGNORE_LABEL, Colour

_LINE = re.compile(r"#?([0-9a-fA-F]{6})\s+(.+)")
UNLABELLED = ("unlabelled", "unlabeled")
"""Names, in upper or lower case, of pixels that belong to no class."""
_MAX_MISSING = 5  # colours that a table may lack; more mean lossy files or soft edges


@dataclass(frozen=True)
class Colours:
    """Classes by colour.

    Attributes:
        names: Class names in label order.
        values: Red, green and blue of each class.
        unlabelled: Colours of pixels that are ignored.
    """

    names: list[str]
    values: list[Colour]
    unlabelled: frozenset[Colour]

    def translate(
        self, path: str, *, snap: bool = False, max_pixels: int = MAX_PIXELS
    ) -> NDArray[np.uint8]:
        """Class of every pixel of a coloured label map, ``(H, W)``.

        Args:
            path: The file.
            snap: Replace colours that the table does not list by the nearest one that it does.
            max_pixels: Larger label maps are refused.

        Raises:
            UserError: If the file has a colour that is not in the table.
        """
        pixels = read_pixels(path, palettes=True, max_pixels=max_pixels)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=-1)  # grey as RGB
        codes = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)  # (H, W)
        labels = np.full(codes.shape, IGNORE_LABEL, dtype=np.uint8)
        known = np.zeros(codes.shape, dtype=bool)
        entries = [*enumerate(self.values), *((IGNORE_LABEL, c) for c in self.unlabelled)]
        for label, (red, green, blue) in entries:
            here = codes == (red << 16 | green << 8 | blue)
            labels[here], known = label, known | here
        if snap:
            labels[~known] = self._nearest(codes[~known])
        elif not known.all():
            others = np.unique(codes[~known])
            code = int(codes[~known][0])
            if len(others) > _MAX_MISSING:
                raise UserError(
                    f"The label map {path} has {len(others)} colours in {(~known).mean():.1%} of "
                    f"its pixels that the table does not list, such as #{code:06x}, as after saving"
                    " with loss (JPEG) or drawing with soft edges (antialiasing). Save label maps "
                    "as PNG without either, or give --snap, which takes the nearest colour."
                )
            raise UserError(
                f"The label map {path} has the colour #{code:06x} in"
                f" {counted(int((~known).sum()), 'pixel')}, which the table does not list."
                f" Add it, as `#{code:06x} name` or `#{code:06x} {UNLABELLED[0]}`."
                " Label maps must be saved without loss (PNG)."
            )
        return labels

    def _nearest(self, codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Class of the nearest colour of the table for each code."""
        table = [*enumerate(self.values), *((IGNORE_LABEL, c) for c in self.unlabelled)]
        classes = np.array([label for label, _ in table], dtype=np.uint8)
        colours = np.array([colour for _, colour in table], dtype=np.int64)
        unique, inverse = np.unique(codes, return_inverse=True)
        wanted = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], -1).astype(np.int64)
        distances = ((wanted[:, None] - colours[None]) ** 2).sum(-1)
        return classes[distances.argmin(1)][inverse]


def read_colours(path: Path) -> Colours:
    """Read lines of ``#rrggbb name``; names of `UNLABELLED` mark pixels that are ignored.

    Raises:
        UserError: If the file is missing, or a line is not of this form or repeats a colour.
    """
    if not path.is_file():
        raise UserError(f"The colour table {path} does not exist; write lines `#rrggbb name`.")
    names: list[str] = []
    values: list[Colour] = []
    unlabelled: set[Colour] = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"The colour table {path} is not UTF-8 text; write lines `#rrggbb name`."
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise UserError(f"Line {number} of {path} is not `#rrggbb name`: {line!r}.")
        code, name = int(match[1], 16), match[2].strip()
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour in values or colour in unlabelled:
            raise UserError(f"Line {number} of {path} repeats the colour #{match[1]}.")
        if name.lower() in UNLABELLED:
            unlabelled.add(colour)
            continue
        if name in names:
            raise UserError(f"Line {number} of {path} repeats the class {name!r}.")
        names.append(name)
        values.append(colour)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UserError(f"{path} names {len(names)} classes; expected 1 to {MAX_CLASSES}.")
    return Colours(names, values, frozenset(unlabelled))


def read_pixels(
    path: str, *, palettes: bool = False, max_pixels: int = MAX_PIXELS
) -> NDArray[np.unsignedinteger]:
    """Numbers ``(H, W)`` of a grey or palette file, colours ``(H, W, 3)`` of others.

    Args:
        path: The file.
        palettes: Return the colours of palette files, too.
        max_pixels: Larger label maps are refused.

    Raises:
        BrokenImageError: If the file cannot be decoded.
        UserError: If it holds floating-point numbers.
    """
    with open_image(path, max_pixels, "label map") as image:
        refuse_floats(image, path)
        if image.mode == "1":
            return np.asarray(image.convert("L"))
        has_numbers = image.mode in ("L", "LA") or image.mode.startswith("I")
        if has_numbers or (image.mode == "P" and not palettes):
            return stored_values(image)
        return np.asarray(image.convert("RGB"))
