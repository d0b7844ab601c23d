"""``prepare from-coco``: a COCO annotation file (or two) and the folder of its pictures."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from src.data.coco_json import CocoFile, why_unusable
from src.data.own import recipe, split
from src.data.own.survey import survey
from src.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("annotations", type=Path, help="COCO json with boxes and masks")
    add("--images", type=Path, required=True, help="folder that its file names start in")
    add("--val-annotations", type=Path, help="json of the validation pictures (default: a part)")
    add("--val-images", type=Path, help="folder of the validation pictures (that of --images)")
    split.add_arguments(parser)
    recipe.add_arguments(parser, "detection")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, split, write the recipe and tell what to do next.

    Raises:
        UserError: If a file is broken, a picture missing, or its size not that of the json.
    """
    name, out = split.target(args, args.images)
    train = CocoFile(args.annotations)
    files = {"train": (args.annotations, args.images)}
    if args.val_annotations:
        files["val"] = (args.val_annotations, args.val_images or args.images)
        _check_categories(train, CocoFile(args.val_annotations))
    pictures = [
        picture for path, images in files.values() for picture in _check_pictures(path, images)
    ]
    parts = ("annotations",)
    facts = {"source": str(args.annotations), "val_share": args.val_share, "seed": args.seed}
    split.start_over(out, parts, facts)
    if not args.val_annotations:
        files = _divide(args, out)
    readers = {part: CocoFile(path) for part, (path, _) in files.items()}
    learned = {part: _usable(reader) for part, reader in readers.items()}
    if not any(learned["train"].values()):
        raise UserError(
            f"{args.annotations} has no object with a box and a mask; Mask R-CNN needs both. For "
            "boxes alone take configs/detection/dino_internimage_nano_laptop.yaml "
            "with --data.train_annotations, --data.train_images and the same of val."
        )
    print(
        f"{out}: {len(readers['train'].pictures)} training and {len(readers['val'].pictures)} "
        "validation pictures; objects:"
    )
    for label in train.class_names:
        print(f"  {label}: {learned['train'][label]} + {learned['val'][label]}")
    never = [label for label in train.class_names if not learned["train"][label]]
    if never:
        print(f"note: no training object of {', '.join(never)}: it cannot be learned")
    unseen = [label for label in train.class_names if not learned["val"][label]]
    if unseen:
        print(f"note: no validation object of {', '.join(unseen)}: the scores leave it out")
    print(f"Checked: {survey(pictures)}")
    data: dict[str, Any] = {"root": "."}
    for part, (path, images) in files.items():
        data[f"{part}_images"] = str(images)
        data[f"{part}_annotations"] = str(path)
    recipe.write(args, out / f"{name}.yaml", "detection", data, len(readers["train"].pictures))


def _check_categories(train: CocoFile, val: CocoFile) -> None:
    if train.categories != val.categories:
        raise UserError(
            f"{val.path} has other categories than {train.path}: {val.class_names} instead of "
            f"{train.class_names}. Both files must list the same ids and names."
        )


def _check_pictures(annotations: Path, images: Path) -> list[str]:
    """Paths of the pictures of a file, each of the size that the file says."""
    file = CocoFile(annotations)
    paths = [str(images / picture.file_name) for picture in file.pictures]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} pictures of {annotations} are not in {images}; the "
            f"first is {missing[0]}. Check --images: file names in the json start from there."
        )
    if not file.pictures or not any(file.num_annotations):
        raise UserError(f"{annotations} has no annotated pictures, so there is nothing to learn.")
    sizes = survey(paths).sizes
    for picture, path in zip(file.pictures, paths, strict=True):
        height, width = sizes[path]
        if picture.size not in ((height, width), (width, height)):
            raise UserError(
                f"{path} is {width}x{height} pixels, but {annotations} says "
                f"{picture.size[1]}x{picture.size[0]}; the objects would be misplaced."
            )
    return paths


def _divide(args: argparse.Namespace, out: Path) -> dict[str, tuple[Path, Path]]:
    content = json.loads(args.annotations.read_bytes())
    numbers = [picture["id"] for picture in content["images"]]
    if len(numbers) < 2:
        raise UserError(f"{args.annotations} has one picture; two are needed, one to check with.")
    files = {}
    for part, chosen in zip(
        ("train", "val"), split.split(numbers, args.val_share, args.seed), strict=True
    ):
        kept = set(chosen)
        path = out / "annotations" / f"{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        selected = {
            "images": [p for p in content["images"] if p["id"] in kept],
            "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
        }
        path.write_text(json.dumps(content | selected, ensure_ascii=False), encoding="utf-8")
        files[part] = (path, args.images)
    return files


def _usable(file: CocoFile) -> Counter[str]:
    """Objects of every class that can be learned from."""
    names = file.class_names
    return Counter(
        names[annotation["category_id"]]
        for index, picture in enumerate(file.pictures)
        for annotation in file.annotations(index)
        if why_unusable(annotation, picture.size) is None
    )
