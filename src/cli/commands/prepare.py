"""`python -m src prepare`: make data folders in the layouts that the data modules read.

`from-folder`, `from-coco` and `from-masks` check your own images and write a recipe for them
(`src.data.custom`); `toy` draws the toy data; `imagenet-val` sorts the flat ImageNet validation
images into class folders; `coco-subset` makes a small annotation file of a large one. Nothing is
downloaded: ImageNet has to be fetched from its makers, under their terms.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.data.custom import coco, folder, masks
from src.data.prepare.coco_subset import write_subset
from src.data.toy.ade20k import scenes, write_toy_ade20k
from src.data.toy.coco import scenes as coco_scenes
from src.data.toy.coco import write_toy_coco
from src.data.toy.imagenet import ToySettings, write_toy_imagenet
from src.data.toy.scenes import SHAPES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``prepare``; default is those of the process.

    Returns:
        Exit status 0.

    Raises:
        UserError: If folders, files or values are not what the command needs.
    """
    args = _parser().parse_args(argv)
    args.run(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src prepare", description="Make data folders that the data modules read."
    )
    commands = parser.add_subparsers(required=True, metavar="DATA")
    for name, module, text in (
        ("from-folder", folder, "your images in class folders: check, split, write a recipe"),
        ("from-coco", coco, "your images with a COCO json: the same"),
        ("from-masks", masks, "your images with label maps: the same"),
    ):
        module.add_arguments(commands.add_parser(name, help=text, description=module.__doc__))
    _add_toy(commands.add_parser("toy", help="draw the toy data (seconds, no download)"))
    _add_imagenet_val(
        commands.add_parser(
            "imagenet-val", help="sort the flat ImageNet validation images into class folders"
        )
    )
    _add_coco_subset(
        commands.add_parser("coco-subset", help="make a small annotation file of a large one")
    )
    return parser


def _add_toy(parser: argparse.ArgumentParser) -> None:
    default = ToySettings()
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/toy"), help="holds the layouts (%(default)s)")
    add("--seed", type=int, default=default.seed, help="another one, other images (%(default)s)")
    add("--train", type=int, default=default.train, help="images per class (%(default)s)")
    add("--val", type=int, default=default.val, help="images per class (%(default)s)")
    add("--predict", type=int, default=default.predict, help="unlabelled images (%(default)s)")
    add("--size", type=int, default=default.size, help="side in pixels (%(default)s)")
    add("--force", action="store_true", help="replace toy data of other settings")
    parser.set_defaults(run=_toy)


def _add_imagenet_val(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of ILSVRC2012_val_*.JPEG")
    add(
        "--labels",
        type=Path,
        required=True,
        help="lines `ILSVRC2012_val_00000001.JPEG 65` (index or synset), LOC_val_solution.csv, or "
        "the devkit's ILSVRC2012_validation_ground_truth.txt with meta.mat beside it",
    )
    add("--root", type=Path, default=Path("data/imagenet"), help="writes ROOT/val (%(default)s)")
    add(
        "--mode",
        choices=("symlink", "hardlink", "copy", "move"),
        default="symlink",
        help="how the images get into the class folders (%(default)s)",
    )
    parser.set_defaults(run=_imagenet_val)


def _add_coco_subset(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help="COCO annotation file to take from")
    add("--out", type=Path, required=True, help="annotation file to write")
    add("--pictures", type=int, default=16, help="how many images (%(default)s)")
    add("--max-objects", type=int, help="leave out images with more objects")
    parser.set_defaults(run=_coco_subset)


def _toy(args: argparse.Namespace) -> None:
    settings = ToySettings(args.seed, args.train, args.val, args.predict, args.size)
    root = args.root / "imagenet"
    drawn = write_toy_imagenet(root, settings, force=args.force)
    print(
        f"{root}: {'drew' if drawn else 'already there,'} {len(SHAPES)} classes with "
        f"{settings.train} train and {settings.val} val images each, {settings.predict} to "
        "predict"
    )
    root = args.root / "ade20k"
    drawn = write_toy_ade20k(root, settings, force=args.force)
    print(
        f"{root}: {'drew' if drawn else 'already there,'} {scenes(settings, 'train')} training "
        f"and {scenes(settings, 'val')} validation scenes with label maps, {settings.predict} to "
        "predict"
    )
    root = args.root / "coco"
    drawn = write_toy_coco(root, settings, force=args.force)
    print(
        f"{root}: {'drew' if drawn else 'already there,'} {coco_scenes(settings, 'train')} "
        f"training and {coco_scenes(settings, 'val')} validation scenes with boxes and masks, "
        f"{settings.predict} to predict"
    )


def _imagenet_val(args: argparse.Namespace) -> None:
    # Imported here, because the class names come from timm, whose import takes seconds.
    from src.data.prepare.imagenet_val import arrange_val, read_val_labels

    target = args.root / "val"
    placed, before = arrange_val(args.images, read_val_labels(args.labels), target, args.mode)
    print(f"{target}: {placed} images placed by {args.mode}, {before} were there before")
    print(f"check with `python -m src verify imagenet --root {args.root}`")


def _coco_subset(args: argparse.Namespace) -> None:
    count = write_subset(args.annotations, args.out, args.pictures, args.max_objects)
    print(f"{args.out}: {args.pictures} images with {count} objects")
