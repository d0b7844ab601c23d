"""``prepare from-masks``: images and their label maps, in two folders or side by side.

Label maps may hold class numbers (from 0, or those of ``--class-values``) or colours that a table
translates (``--colours``). Unlabelled are 255, the numbers of ``--ignore``, for example 0, and a
class that is named ``unlabelled``. Black and white masks (0 and 255) become the classes 0 and 1.
Folders such as ``train`` and ``valid`` are splits.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src import files
from src.data.classes.class_names import class_names_of_option, read_class_table
from src.data.custom import recipe, split
from src.data.custom.colours import read_colours
from src.data.custom.label_values import LabelReader, check_numbers, note_absent
from src.data.custom.pairs import Pair, match_label_maps
from src.data.custom.survey import Survey, look_at
from src.data.formats.label_maps import to_own_numbers
from src.data.formats.splits import SPLITS
from src.decoding import BrokenImageError, open_image
from src.errors import UserError, agreed, counted
from src.file_names import quoted
from src.types import IGNORE_LABEL, Size

_BLACK_AND_WHITE = [0, 255]  # values of a mask whose white pixels are a class
_NAME_FILES = ("classes.txt", "class_names.txt")  # usual names of a list of the classes
_FOLDERS = {"train": "training", "val": "validation", "test": "test"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("folder", type=Path, nargs="?", help="a folder of images and label maps")
    add("--images", type=Path, help="folder of images, searched at any depth (default: FOLDER)")
    add("--masks", type=Path, help="folder of label maps, may be the same (default: FOLDER)")
    add("--image-suffix", help="suffix of image files, e.g. _leftImg8bit.png")
    add("--mask-suffix", help="suffix of label maps, e.g. _mask.png (default: detected)")
    add(
        "--class-names",
        nargs="+",
        help="names in label order, or a file of them or of values and names",
    )
    add("--class-values", nargs="+", type=int, help="value of each class (default: 0, 1, 2, ...)")
    add("--ignore", nargs="+", type=int, default=[], help="values that are unlabelled, besides 255")
    add("--colours", type=Path, help="for coloured masks: text file with lines `#rrggbb name`")
    add(
        "--snap",
        action="store_true",
        help="anti-aliased edges: use the nearest class",
    )
    add(
        "--skip-broken",
        action="store_true",
        help="leave out images without a label map, and files that cannot be read",
    )
    split.add_arguments(parser, places_files=True)
    recipe.add_arguments(parser, "segmentation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, translate, split, write the recipe and print the next commands.

    Raises:
        UserError: If files are missing or broken, sizes differ, or a value is no class.
    """
    args.images, args.masks = args.images or args.folder, args.masks or args.folder
    if args.images is None or args.masks is None:
        raise UserError(
            "prepare from-masks needs a folder with images and label maps, or --images and --masks."
        )
    name, out, notes = split.target(args, args.images)
    pairs, found_notes = match_label_maps(
        args.images,
        args.masks,
        args.image_suffix,
        args.mask_suffix,
        skip_missing=args.skip_broken,
    )
    notes += found_notes
    found, maps = _check_files(pairs, args.max_pixels, skip_broken=args.skip_broken)
    pairs = [pair for pair in pairs if pair.image in found.sizes and pair.mask in maps.sizes]
    notes += _note_broken(found, maps)
    if len(pairs) < 3:
        raise UserError(
            f"{args.images} holds {counted(len(pairs), 'image')} with label maps; at least three "
            "are needed, two for a training batch and one for validation."
        )
    colours = read_colours(args.colours) if args.colours else None
    masks = [pair.mask for pair in pairs]
    names, values = _given_classes(args)
    is_table = values != args.class_values
    source = args.class_names[0] if is_table else "--class-values"
    check_numbers(values, args.ignore, source)
    labels = LabelReader(
        masks,
        colours,
        names,
        values,
        args.snap,
        args.max_pixels,
        args.ignore,
        source,
    )
    if labels.ignored:
        notes.append(f"unlabelled, besides 255: {', '.join(map(str, labels.ignored))}")
    if is_table:
        notes.append(f"values of the classes are the numbers in {source}")
    notes += [*_note_zero(args, labels), *_note_names(args), *_note_predicted(labels)]
    parts, advice = _divide(pairs, labels, args)
    facts = {"source": str(args.images), "val_share": args.val_share, "seed": args.seed}
    data: dict[str, Any] = {"root": str(out), "class_names": labels.names, "upright": True}
    data["reduce_zero_label"] = False
    if "test" in parts:
        data |= {"test_images": "images/test", "test_labels": "annotations/test"}
    if colours:
        data["palette"] = [list(colour) for colour in colours.values]
        data["own_values"] = [list(colour) for colour in colours.values]
    else:
        data["own_values"] = _own_numbers(labels)
    with split.start_over(args, out, ("images", "annotations"), facts) as work:
        counts = _place(parts, labels, work, args.mode)
        numbers = {part: len(chosen) for part, chosen in parts.items()}
        print(
            f"{out}: {split.image_counts(numbers)}; images that show a class"
            f" ({split.columns(parts)}):"
        )
        for number, label in enumerate(labels.names):
            print(f"  {label}: " + " + ".join(str(counts[part][number]) for part in parts))
        others = "other " * bool(maps.broken)
        print(f"Checked: {found}, and all {others}label maps have their sizes")
        for part in parts:
            absent = note_absent(labels.names, counts[part], _FOLDERS[part])
            notes += [note + advice * (part == "val") for note in absent]
        for note in notes:
            print(f"note: {note}")
        path = out / f"{name}.yaml"
        unseen = out / "images" / _FOLDERS["val"]
        recipe.write(args, path, "segmentation", data, len(parts["train"]), work, unseen)


def _place(
    parts: dict[str, list[Pair]], labels: LabelReader, work: Path, mode: str
) -> dict[str, Counter[int]]:
    """Put images and label maps into the new folder; returns the images per class and split."""
    counts = {}
    for part, chosen in parts.items():
        counts[part] = Counter[int]()
        for pair in chosen:
            split.place(Path(pair.image), work / "images" / _FOLDERS[part] / pair.inside, mode)
            classes = labels.read(pair.mask)
            path = work / "annotations" / _FOLDERS[part] / pair.inside.with_suffix(".png")
            files.write_image(path, Image.fromarray(classes))
            counts[part].update(int(value) for value in np.unique(classes))
    return counts


def _divide(
    pairs: list[Pair], labels: LabelReader, args: argparse.Namespace
) -> tuple[dict[str, list[Pair]], str]:
    """Pairs of each split, by their folders, or at random with the same share of each class.

    Returns:
        The pairs, and advice for classes that no validation image shows.

    Raises:
        UserError: If only some are in folders of splits, or there is none for training.
    """
    parts: dict[str, list[Pair]] = {part: [] for part in SPLITS}
    apart = [pair for pair in pairs if pair.split is None]
    for pair in pairs:
        parts[pair.split or "train"].append(pair)
    if apart and len(apart) < len(pairs):
        names = " and ".join(f"{len(parts[p])} in {p}" for p in SPLITS if parts[p])
        raise UserError(
            f"{args.images} has {counted(len(pairs) - len(apart), 'image')} in folders of splits"
            f" and {len(apart)} in none (the first is {apart[0].image}; counted with train:"
            f" {names}). Put all of them into train, val or test, or none."
        )
    if not parts["train"]:
        found = ", ".join(part for part in SPLITS if parts[part])
        raise UserError(
            f"{args.images} has images of the split {found} only; there are none for training."
        )
    advice = ""
    if not parts["val"]:
        by_name = {pair.image: pair for pair in parts["train"]}
        if len(by_name) < 2:
            raise UserError(
                f"{args.images} has one training image; at least two are needed, one of them for "
                "validation."
            )
        classes = [
            set(np.unique(labels.read(pair.mask)).tolist()) - {IGNORE_LABEL}
            for pair in by_name.values()
        ]
        chosen = split.split_by_class(list(by_name), classes, args.val_share, args.seed)
        advice = split.advice_on_share(classes, args.val_share, args.seed)
        parts["train"], parts["val"] = ([by_name[name] for name in part] for part in chosen)
    return {part: found for part, found in parts.items() if found}, advice


def _given_classes(args: argparse.Namespace) -> tuple[list[str] | None, list[int] | None]:
    """Names of the classes and the value of each, if given; a table of names may give both."""
    if args.class_names and args.colours:
        raise UserError("Give either --class-names or --colours, which names the classes too.")
    if args.ignore and args.colours:
        raise UserError(
            "Give either --ignore or --colours: in the table, name a colour `unlabelled`."
        )
    if args.class_values and args.colours:
        raise UserError("Give either --class-values or --colours, which is for coloured masks.")
    if not args.class_names:
        return None, args.class_values
    table: dict[int, str] = {}
    if len(args.class_names) == 1 and Path(args.class_names[0]).is_file():
        table = read_class_table(args.class_names[0])
    if not table:
        return class_names_of_option(args.class_names), args.class_values
    # Numbers from 0 are the order of the names, which may also be of black and white masks.
    has_values = list(table) != list(range(len(table))) and not args.class_values
    return list(table.values()), list(table) if has_values else args.class_values


def _note_zero(args: argparse.Namespace, labels: LabelReader) -> list[str]:
    """A note that 0 is a class, if nothing says what it means."""
    is_said = args.class_names or args.class_values or args.ignore or args.colours
    if is_said or labels.values == _BLACK_AND_WHITE:
        return []
    return [
        "0 is a class of its own (class 0); if it means unlabelled, add --ignore 0; --class-names "
        "gives the classes names"
    ]


def _note_names(args: argparse.Namespace) -> list[str]:
    """A note about a file of class names that lies beside the data and is not given."""
    if args.class_names or args.colours:
        return []
    apart = args.images != args.masks
    folders = [args.images, args.masks, *[args.images.parent, args.masks.parent] * apart]
    paths = (folder / name for folder in folders for name in _NAME_FILES)
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        return []
    return [f"{found} is not used; to name the classes by it, add --class-names {quoted(found)}"]


def _own_numbers(labels: LabelReader) -> list[int]:
    """Number of each class, also of named ones after the highest number that occurs."""
    further = itertools.count(max(labels.values, default=-1) + 1)
    unused = (number for number in further if number not in labels.ignored)
    return [*labels.values, *itertools.islice(unused, len(labels.names) - len(labels.values))]


def _note_predicted(labels: LabelReader) -> list[str]:
    """How to get the numbers of the files from predicted label maps, which count from 0."""
    values = labels.values
    if not values or values == _BLACK_AND_WHITE or values == list(range(len(values))):
        return []
    return [
        "predicted label maps count the classes from 0, in the order of this list;"
        f" {to_own_numbers(values)}, or predict with --label_maps.values own"
    ]


def _note_broken(images: Survey, maps: Survey) -> list[str]:
    """A note about pairs of which a file cannot be read, and which are left out."""
    broken = Survey(broken=images.broken + maps.broken)
    if not broken.broken:
        return []
    number = len(broken.broken)
    are = agreed(number, "is", "are")
    return [
        f"{counted(number, 'file')} that cannot be read {are} left out, with the other one of the"
        f" pair (--skip-broken):{broken.named()}"
    ]


def _check_files(pairs: list[Pair], max_pixels: int, *, skip_broken: bool) -> tuple[Survey, Survey]:
    """Decode the images, and compare their sizes with those of the label maps.

    Args:
        pairs: Images with their label maps.
        max_pixels: Larger images count as broken.
        skip_broken: Do not refuse files that cannot be read.

    Returns:
        What was found in the images and in the label maps.

    Raises:
        UserError: If images or label maps cannot be read, or sizes differ; the message has a line
            for each kind of fault.
    """
    found = look_at([pair.image for pair in pairs], max_pixels)
    maps = Survey(len(pairs))
    sizes = maps.sizes
    for pair in pairs:
        try:
            with open_image(pair.mask, max_pixels, "label map") as mask:
                sizes[pair.mask] = (mask.height, mask.width)
        except BrokenImageError as error:
            maps.broken.append(str(error))
    known = [pair for pair in pairs if pair.image in found.sizes and pair.mask in sizes]
    other = [pair for pair in known if sizes[pair.mask] != found.sizes[pair.image]]
    problems = []
    if not skip_broken:
        advice = ", or leave out such pairs with --skip-broken"
        problems = [*found.unreadable(advice=advice), *maps.unreadable("label map", advice)]
    if other:
        problems.append(_other_sizes(other, len(pairs), found, sizes))
    if problems:
        raise UserError("\n".join(problems))
    return found, maps


def _other_sizes(other: list[Pair], total: int, found: Survey, sizes: dict[str, Size]) -> str:
    first = other[0]
    (height, width), (high, wide) = found.sizes[first.image], sizes[first.mask]
    advice = "they must have the same size."
    if all(sizes[pair.mask] == found.stored[pair.image] for pair in other):
        advice += (
            " The label maps fit the images as they are stored, without the EXIF orientation: turn"
            " the label maps, or remove the orientation from the images."
        )
    return (
        f"{len(other)} of {counted(total, 'label map')} {agreed(len(other), 'has', 'have')} another"
        f" size than the image; the first is {first.mask}: {wide}x{high}, and its image"
        f" {first.image} is {width}x{height} pixels (upright); {advice}"
    )
