"""``python -m src prepare``: prepare datasets in the layouts that the data modules read.

`from-folder`, `from-coco`, `from-yolo` and `from-masks` check your own images and write a recipe
for them (`src.data.custom`); `toy` generates the toy data; `imagenet-val` sorts the flat ImageNet
validation images into class folders; `imagenet22k` lists the images of class folders; `cityscapes`
makes its label maps; `coco-subset` extracts a small annotation file from a large one; `index-tars`
indexes image-text pairs in tars. Nothing is downloaded: download ImageNet from its website, under
its terms.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.cli.tool_parser import ToolParser
from src.data.custom import coco, folder, masks, yolo
from src.data.prepare import cityscapes, coco_subset, imagenet22k, imagenet_val, index_tars
from src.data.toy import ade20k as toy_ade20k
from src.data.toy import boxes as toy_boxes
from src.data.toy import coco as toy_coco
from src.data.toy import image_text as toy_image_text
from src.data.toy import imagenet as toy_imagenet
from src.data.toy import inaturalist as toy_inaturalist
from src.data.toy import label_maps as toy_label_maps
from src.data.toy.layout import ToySettings

_COMMANDS = (
    ("from-folder", folder, "your images in class folders: check, split, write a recipe"),
    ("from-coco", coco, "your images with a COCO json: check, split, write a recipe"),
    ("from-yolo", yolo, "your images with YOLO label files: check, split, write a recipe"),
    ("from-masks", masks, "your images with label maps: check, split, write a recipe"),
    ("imagenet-val", imagenet_val, "sort the flat ImageNet validation images into class folders"),
    ("cityscapes", cityscapes, "make the label maps of Cityscapes from its polygons"),
    ("imagenet22k", imagenet22k, "write the list files and label set of ImageNet-22k"),
    ("coco-subset", coco_subset, "extract a small annotation file from a large one"),
    ("index-tars", index_tars, "index image-text pairs in tars, for pre-training"),
)
"""Name, module with ``add_arguments`` and ``run``, and help text."""
_TOY_LAYOUTS = {
    "imagenet": (toy_imagenet.write_toy_imagenet, toy_imagenet.describe),
    "ade20k": (toy_ade20k.write_toy_ade20k, toy_ade20k.describe),
    "coco": (toy_coco.write_toy_coco, toy_coco.describe),
}
_DEFAULT_LAYOUTS = list(_TOY_LAYOUTS)
_TOY_LAYOUTS["inaturalist"] = (
    toy_inaturalist.write_toy_inaturalist,
    toy_inaturalist.describe,
)
_TOY_LAYOUTS |= toy_label_maps.LAYOUTS | toy_boxes.LAYOUTS
_TOY_LAYOUTS["image_text"] = (toy_image_text.write_toy_image_text, toy_image_text.describe)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``prepare``; default is the command line.

    Returns:
        0.

    Raises:
        UserError: If folders, files or values are invalid.
    """
    args = _parser().parse_args(argv)
    args.run(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src prepare", description="Prepare datasets for the data modules."
    )
    commands = parser.add_subparsers(required=True, metavar="DATA")
    for name, module, text in _COMMANDS:
        description = (module.__doc__ or "").replace("``", "")
        module.add_arguments(commands.add_parser(name, help=text, description=description))
    _add_toy(commands.add_parser("toy", help="generate the toy data (seconds, no download)"))
    return parser


def _add_toy(parser: argparse.ArgumentParser) -> None:
    default = ToySettings()
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/toy"), help="output folder (%(default)s)")
    add("--seed", type=int, default=default.seed, help="seed of the images (%(default)s)")
    add("--train", type=int, default=default.train, help="images per class (%(default)s)")
    add("--val", type=int, default=default.val, help="images per class (%(default)s)")
    add("--predict", type=int, default=default.predict, help="unlabelled images (%(default)s)")
    add("--size", type=int, default=default.size, help="image size in pixels (%(default)s)")
    add(
        "--layouts",
        nargs="+",
        metavar="LAYOUT",
        choices=list(_TOY_LAYOUTS),
        default=_DEFAULT_LAYOUTS,
        help=f"which of {', '.join(_TOY_LAYOUTS)} (default: {', '.join(_DEFAULT_LAYOUTS)})",
    )
    add("--force", action="store_true", help="replace toy data with other settings")
    parser.set_defaults(run=_toy)


def _toy(args: argparse.Namespace) -> None:
    settings = ToySettings(args.seed, args.train, args.val, args.predict, args.size)
    for layout in args.layouts:
        write, describe = _TOY_LAYOUTS[layout]
        root = args.root / layout
        written = write(root, settings, force=args.force)
        print(f"{root}: {'wrote' if written else 'already exists:'} {describe(settings)}")
    if "image_text" in args.layouts:
        for split in toy_image_text.TAR_SPLITS:
            tars = args.root / "image_text" / split
            index_tars.index(tars.with_name(f"{split}_index"), [str(tars)])
