"""Find out which class each number in label maps means, and refuse lossy label maps.

A label map that was saved with loss (JPEG) or drawn with soft edges (antialiasing) holds numbers
that are no classes: most of them occur on edges only, never with four equal neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.custom.colours import UNLABELLED, Colours, read_pixels
from src.data.formats.label_maps import MAX_CLASSES
from src.decoding import MAX_PIXELS, open_image
from src.errors import UserError, counted
from src.types import IGNORE_LABEL

_LOSSY = ("JPEG", "MPO")
_MAX_EDGE_SHARE = 0.1
_MAX_LISTED = 20
_SHARE_OF_MAP = 0.3  # of the pixels that the most frequent colours have in a label map, at least
_MAX_NUMBER = 65535
_OPTION = "--class-values"
_SAVE = "Save label maps as PNG, without loss and without soft edges"


@dataclass
class Numbers:
    """The numbers in label maps.

    Attributes:
        pixels: Number of pixels of each number.
        inner: Numbers that have four equal neighbours somewhere.
        lossy: The first file in a lossy format.
        colour_of: Colour of each number in the palettes of files, with the file.
    """

    pixels: Counter[int] = field(default_factory=Counter)
    inner: set[int] = field(default_factory=set)
    lossy: str = ""
    colour_of: dict[int, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    def add(
        self, path: str, values: NDArray[np.unsignedinteger], max_pixels: int = MAX_PIXELS
    ) -> None:
        """Add a file."""
        found, counts = np.unique(values, return_counts=True)
        self.pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        middle = values[1:-1, 1:-1]
        neighbours = (values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:])
        inner = np.logical_and.reduce([middle == neighbour for neighbour in neighbours])
        self.inner.update(np.unique(middle[inner]).tolist())
        with open_image(path, max_pixels, "label map") as image:
            if image.format in _LOSSY:
                self.lossy = self.lossy or path
            if image.mode == "P":
                self._compare_palettes(path, image, found.tolist())

    def _compare_palettes(self, path: str, image: Image.Image, used: list[int]) -> None:
        palette = image.getpalette() or []
        for number in used:
            colour = tuple(palette[3 * number : 3 * number + 3])
            other, file = self.colour_of.setdefault(number, (colour, path))
            if colour != other:
                raise UserError(
                    f"The palettes of the label maps differ: number {number} is {_hex(other)} in "
                    f"{file} and {_hex(colour)} in {path}, so numbers do not say the class. Give a "
                    "table of the colours with --colours."
                )

    @property
    def edges(self) -> set[int]:
        """Numbers that occur on edges only."""
        return set(self.pixels) - self.inner

    def refuse_loss(self, source: str = _OPTION) -> None:
        """Refuse label maps that were saved with loss or have soft edges.

        Args:
            source: Option or file that gives the numbers of the classes.

        Raises:
            UserError: If they are.
        """
        edges, number = self.edges, len(self.pixels)
        share = sum(self.pixels[value] for value in edges) / max(1, self.pixels.total())
        soft = len(edges) >= 3 and 2 * len(edges) > number and share < _MAX_EDGE_SHARE
        if not soft and not (self.lossy and number > 2):
            return
        cause = (
            f"{self.lossy} is a JPEG file, which changes numbers"
            if self.lossy
            else (
                f"{len(edges)} of them occur on edges only, in {share:.1%} of the pixels, as after "
                "saving with loss (JPEG) or drawing with soft edges (antialiasing)"
            )
        )
        common = ", ".join(str(value) for value, _ in self.pixels.most_common(3))
        raise UserError(
            f"The label maps hold {number} different numbers, most often {common}; {cause}. "
            f"{_SAVE}, or give --snap, which takes the nearest of 0 and 255 (black and white "
            f"masks) or of {source}."
        )


def read_numbers(path: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.unsignedinteger]:
    """Numbers of a label map ``(H, W)``, or its colours ``(H, W, 3)`` unless they are all grey."""
    pixels = read_pixels(path, max_pixels=max_pixels)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


class LabelReader:
    """Reads the label maps of a dataset as class numbers from 0, 255 where unlabelled.

    Args:
        paths: All label maps.
        colours: Table for coloured ones.
        names: Class names, if given.
        values: Number of each class in the files, if given.
        snap: Use the nearest class where the value of a pixel is none.
        max_pixels: Larger label maps are refused.
        ignored: Numbers that mean unlabelled, besides 255. Numbers whose class has a name of
            `UNLABELLED` are added.
        source: Option or file that gives ``values``, for messages.

    Raises:
        UserError: If the files do not hold class numbers, or the names do not match them.
    """

    def __init__(
        self,
        paths: Sequence[str],
        colours: Colours | None,
        names: list[str] | None,
        values: Sequence[int] | None,
        snap: bool,
        max_pixels: int = MAX_PIXELS,
        ignored: Sequence[int] = (),
        source: str = _OPTION,
    ) -> None:
        self.source = source
        self.colours, self.snap, self.max_pixels = colours, snap, max_pixels
        self.values: list[int] = []
        self.ignored = sorted(set(ignored))
        if colours is not None:
            self.names = colours.names
            return
        if snap and ignored and values is None:
            raise UserError(
                "--snap takes the nearest class, and with --ignore the numbers of the classes are "
                "not known; give them with --class-values."
            )
        twice = [name for name in names or () if name.strip().lower() in UNLABELLED]
        if twice and ignored and values is None:
            raise UserError(
                f"--ignore already says which values are unlabelled; remove {twice[0]!r} from "
                "--class-names, which name the other values in their order."
            )
        numbers = Numbers()
        for path in paths:
            pixels = read_numbers(path, max_pixels)
            if pixels.ndim == 3:
                raise UserError(_colour_list(path, paths, max_pixels))
            numbers.add(path, pixels, max_pixels)
        if not snap:
            numbers.refuse_loss(source)
        found = set(numbers.pixels)
        is_binary = values is None and not ignored and (snap or found in ({0, 255}, {255}))
        if values is not None:
            self.values = list(values)
        elif is_binary:
            self.values = [0, 255]
        else:
            highest = max(found - {IGNORE_LABEL, *ignored}, default=0)
            if highest > _MAX_NUMBER:
                raise UserError(
                    f"The label maps hold the number {highest}; expected class numbers up to "
                    f"{_MAX_NUMBER}."
                )
            self.values = [n for n in range(highest + 1) if n not in self.ignored]
        if not snap:
            self._check_values(found, given=values is not None, named=names is not None)
        if names is None:
            binary = ["background", "foreground"]
            names = binary if is_binary else [f"class {number}" for number in self.values]
        count = len(self.values)
        is_complete = values is not None or is_binary  # otherwise the last classes may not occur
        if len(names) < count or (is_complete and len(names) > count):
            used = sorted(found.difference(self.ignored))
            raise UserError(_wrong_count(self.values, names, used, values is not None))
        self._leave_out_unlabelled(names)

    def _leave_out_unlabelled(self, names: list[str]) -> None:
        """Set the names, and remove those of unlabelled pixels with their numbers."""
        is_class = [name.strip().lower() not in UNLABELLED for name in names]
        numbered = list(zip(self.values, is_class, strict=False))  # more names than numbers: unused
        self.ignored = sorted({*self.ignored, *(value for value, keep in numbered if not keep)})
        self.values = [value for value, keep in numbered if keep]
        self.names = [name for name, keep in zip(names, is_class, strict=True) if keep]
        if not self.values:
            raise UserError(
                f"The label maps hold no class: {_listed([*self.ignored, IGNORE_LABEL])} are "
                "unlabelled, and there are no other numbers. Give the numbers of the classes with "
                "--class-values."
            )

    def _check_values(self, found: set[int], *, given: bool, named: bool) -> None:
        strange = sorted(found - {*self.values, *self.ignored, IGNORE_LABEL})
        if strange:
            is_one = len(strange) == 1
            held, wanted = (
                (f"number {strange[0]}, which is none of", "add it there or to --ignore")
                if is_one
                else (
                    f"numbers {_listed(strange)}, which are not in",
                    "correct the numbers there, or add those without a class to --ignore",
                )
            )
            raise UserError(
                f"The label maps hold the {held} {self.source} ({_listed(self.values)}) and not 255"
                f" (unlabelled); {wanted}."
            )
        used = found & set(self.values)
        if not (given or named) and len(self.values) > 2 * len(used):
            is_zero = 0 in found.difference(self.ignored)
            hint = " If 0 means unlabelled, leave it out and add --ignore 0." if is_zero else ""
            raise UserError(
                f"The label maps hold the numbers {_listed(sorted(found))}, so most classes from 0 "
                f"to {self.values[-1]} would never occur. Give the number of each class with "
                f"--class-values (255 is unlabelled unless it is listed), such as "
                f"{_values_option(sorted(found.difference(self.ignored)))}.{hint}"
            )
        if len(self.values) > MAX_CLASSES:
            raise UserError(
                f"Label maps accept up to {MAX_CLASSES} classes, got {len(self.values)}."
            )

    def read(self, path: str) -> NDArray[np.uint8]:
        """Class of every pixel, ``(H, W)``."""
        if self.colours is not None:
            return self.colours.translate(path, snap=self.snap, max_pixels=self.max_pixels)
        pixels = read_numbers(path, self.max_pixels).astype(np.int64)
        if self.snap:
            known = np.array([*self.values, *self.ignored])
            labels = [*range(len(self.values)), *[IGNORE_LABEL] * len(self.ignored)]
            numbers = np.unique(pixels)
            nearest = np.abs(numbers[:, None] - known[None]).argmin(1)
            table = np.zeros(numbers.max() + 1, dtype=np.uint8)
            table[numbers] = np.array(labels, dtype=np.uint8)[nearest]
            return table[pixels]
        table = np.full(max(*self.values, IGNORE_LABEL, int(pixels.max())) + 1, IGNORE_LABEL)
        table[self.values] = range(len(self.values))
        return table[pixels].astype(np.uint8)


def _wrong_count(values: list[int], names: list[str], found: list[int], given: bool) -> str:
    """Sentences about class names that are more or fewer than the classes.

    Args:
        values: Number of each class.
        names: The names.
        found: Numbers in the label maps that are not ignored, sorted.
        given: Whether ``values`` are those of ``--class-values``.
    """
    count, named = len(values), counted(len(names), "name")
    if given:
        return f"--class-values gives {counted(count, 'number')}, but --class-names {named}."
    for used in (found, [n for n in found if n != IGNORE_LABEL]):
        if len(used) == len(names):
            return (
                f"The label maps hold {_listed(found)}, and --class-names gives {named}"
                f" ({_listed(names)}). If each name belongs to one of these numbers, in the same"
                f" order, add {_values_option(used)}. If all numbers from {values[0]} to"
                f" {values[-1]} are classes, give {count} names."
            )
    hint = " If 0 means unlabelled, add --ignore 0." if values[0] == 0 else ""
    return (
        f"The classes of the label maps are the numbers {_listed(values)}, but --class-names gives "
        f"{named} ({_listed(names)}). Give {count}, the first one for number {values[0]}.{hint}"
    )


def _values_option(numbers: list[int]) -> str:
    """``--class-values`` with these numbers, of which many are shortened."""
    more = " ..." if len(numbers) > _MAX_LISTED else ""
    return f"--class-values {' '.join(map(str, numbers[:_MAX_LISTED]))}{more}"


def _colour_list(path: str, paths: Sequence[str], max_pixels: int) -> str:
    """Sentence about coloured files that lists the colours to write into a table."""
    pixels = Counter[int]()
    for file in paths[:_MAX_LISTED]:
        shown = read_pixels(file, max_pixels=max_pixels)
        if shown.ndim == 3:
            codes = shown.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
            found, counts = np.unique(codes, return_counts=True)
            pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    listed = dict(pixels.most_common(_MAX_LISTED))
    if sum(listed.values()) < _SHARE_OF_MAP * pixels.total():
        return (
            f"{path} has {len(pixels)} colours, none of which is in many pixels: it looks like a"
            " photo, not like a label map. Are --images and --masks swapped?"
        )
    lines = "\n".join(f"  #{code:06x} name" for code in sorted(listed))
    rest = len(pixels) - len(listed)
    share = 1 - sum(listed.values()) / pixels.total()
    odd = (
        f"\n{rest} further colours are in {share:.1%} of the pixels, as after saving with loss "
        f"(JPEG) or drawing with soft edges. {_SAVE}, or add --snap, which takes the nearest colour"
        " of the table."
        if rest
        else ""
    )
    return (
        f"The label map {path} holds colours. Write a text file that says which colour is which "
        f"class, and give it with --colours; these are there:\n{lines}{odd}"
    )


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_MAX_LISTED])) + (
        ", ..." if len(values) > _MAX_LISTED else ""
    )


def note_absent(names: Sequence[str], present: Counter[int], where: str) -> list[str]:
    """One sentence about the classes that never occur in a split."""
    absent = [name for number, name in enumerate(names) if not present[number]]
    if not absent:
        return []
    listed = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
    return [f"no {where} label map shows {listed}"]


def check_numbers(values: list[int] | None, ignored: list[int], source: str = _OPTION) -> None:
    """Check the numbers of the classes and of ``--ignore``.

    Args:
        values: Number of each class.
        ignored: Numbers of unlabelled pixels.
        source: Option or file that gives the numbers of the classes.

    Raises:
        UserError: If a number is out of range or occurs twice.
    """
    for option, given in ((source, values), ("--ignore", ignored)):
        if given and (
            len(set(given)) < len(given) or not all(0 <= v <= _MAX_NUMBER for v in given)
        ):
            raise UserError(
                f"{option} accepts different numbers from 0 to {_MAX_NUMBER}, got {_listed(given)}."
            )
    if values is None:
        return
    if both := sorted({*values} & {*ignored}):
        raise UserError(f"{both[0]} is given in both {source} and --ignore.")
    if len(values) > MAX_CLASSES:
        raise UserError(f"{source} accepts up to {MAX_CLASSES} numbers, got {len(values)}.")
