"""Write the list files of ImageNet-22k, or of any folders named by synset, and their label set.

The winter-2021 release has 19,167 class folders. No list of them is public, so the label set is
what is in the folder, sorted by synset. Images stay where they are.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from src import files
from src.data.formats.image_files import list_class_folders, list_images
from src.errors import UserError, counted

_SYNSET = re.compile(r"n\d{8}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``prepare imagenet22k``."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder with one folder of images per synset")
    add(
        "--root",
        type=Path,
        default=None,
        help="where train.txt, val.txt and classes.txt go (default: the folder of --images)",
    )
    add(
        "--val-images",
        type=int,
        default=2,
        help="images of each class for validation, the last ones by name, if the class has more"
        " than twice as many (%(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the three files and print what they hold.

    Raises:
        UserError: If there are no folders named by synset, or one of them is empty.
    """
    if args.val_images < 1:
        raise UserError(f"--val-images accepts integers of at least 1, got {args.val_images}.")
    if not args.images.is_dir():
        raise UserError(f"The folder {args.images} does not exist; give --images.")
    synsets = [name for name in list_class_folders(args.images) if _SYNSET.fullmatch(name)]
    if not synsets:
        raise UserError(
            f"The folder {args.images} has no folders named by synset, such as n01440764; unpack"
            " the archive of each class into one."
        )
    root = args.images.parent if args.root is None else args.root
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for synset in synsets:
        images = list_images(args.images / synset)
        if not images:
            raise UserError(f"The class folder {args.images / synset} holds no images. Remove it.")
        cut = len(images) - (args.val_images if len(images) > 2 * args.val_images else 0)
        for split, some in (("train", images[:cut]), ("val", images[cut:])):
            lines[split] += [f"{os.path.relpath(path, root)}\t{synset}\n" for path in some]
    root.mkdir(parents=True, exist_ok=True)
    for split, content in lines.items():
        files.write_text(root / f"{split}.txt", "".join(content))
    files.write_text(root / "classes.txt", "\n".join(synsets) + "\n")
    print(
        f"{root}: wrote classes.txt ({len(synsets)} classes), train.txt"
        f" ({counted(len(lines['train']), 'image')}) and val.txt"
        f" ({counted(len(lines['val']), 'image')})"
    )
