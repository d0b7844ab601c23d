"""``prepare from-coco``: COCO annotation files and the folders of their images.

Either one file (a part is kept for validation), a file for training and one for validation, or a
folder with a file for each split.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from src.data.coco_json import CocoFile, images_to_learn, why_unusable
from src.data.own import recipe, split
from src.data.own.coco_layout import find_annotations, find_images, neighbours
from src.data.own.survey import survey
from src.errors import UserError

_MIN_SIZE = 32  # pixels; data.min_size of the recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("annotations", type=Path, help="COCO json, or a folder with one in train, valid, test")
    add("--images", type=Path, help="folder that its file names start in (found nearby)")
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
    files = _find_files(args)
    is_folder = args.annotations.is_dir()
    source = args.annotations if is_folder else files["train"][1]
    name, out = split.target(args, source, searched=is_folder)
    annotations = files["train"][0]
    train = CocoFile(annotations)
    if not any(_usable(train).values()):
        raise UserError(
            f"{annotations} has no object with a box and a mask; Mask R-CNN needs both. For "
            "boxes alone take configs/detection/dino_internimage_nano_laptop.yaml "
            "with --data.train_annotations, --data.train_images and the same of val."
        )
    for part in files.keys() - {"train"}:
        _check_categories(train, CocoFile(files[part][0]))
    pictures = [
        picture for path, images in files.values() for picture in _check_pictures(path, images)
    ]
    facts = {"source": str(annotations), "val_share": args.val_share, "seed": args.seed}
    split.start_over(out, ("annotations",), facts)
    if "val" not in files:
        divided = _divide(*files["train"], args, out)
        files = {**divided, **({"test": files["test"]} if "test" in files else {})}
    readers = {part: CocoFile(path) for part, (path, _) in files.items()}
    learned = {part: _usable(reader) for part, reader in readers.items()}
    kept, left_out = images_to_learn(readers["train"], keep_empty=False, min_size=_MIN_SIZE)
    if not kept:
        raise UserError(_nothing_left(readers["train"], left_out))
    tested = f", {len(readers['test'].pictures)} test" if "test" in readers else ""
    print(
        f"{out}: {len(kept)} training and {len(readers['val'].pictures)} validation{tested} images;"
        " objects:"
    )
    for label in train.class_names:
        print(f"  {label}: " + " + ".join(str(learned[part][label]) for part in files))
    for reason, count in left_out.items():
        total = len(readers["train"].pictures)
        print(f"note: {count} of {total} training images are left out: {reason}")
    never = [label for label in train.class_names if not learned["train"][label]]
    if never:
        print(f"note: no training object of {', '.join(never)}: it cannot be learned")
    unseen = [label for label in train.class_names if not learned["val"][label]]
    if unseen:
        print(f"note: no validation object of {', '.join(unseen)}: the scores leave it out")
    for other in [] if args.annotations.is_dir() else neighbours(args.annotations):
        print(
            f"note: {other} is not used; give {args.annotations.parent.parent} to take all splits"
        )
    print(f"Checked: {survey(pictures)}")
    data: dict[str, Any] = {"root": "."}
    for part, (path, images) in files.items():
        data[f"{part}_images"] = str(images)
        data[f"{part}_annotations"] = str(path)
    recipe.write(args, out / f"{name}.yaml", "detection", data, len(kept))


def _find_files(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Annotation file and folder of images of each split that is given or found."""
    if not args.annotations.is_dir():
        for path in filter(None, (args.annotations, args.val_annotations)):
            if not path.is_file():
                raise UserError(f"The annotation file {path} does not exist.")
        images = args.images or find_images(args.annotations, args.annotations.parent)
        files = {"train": (args.annotations, images)}
        if args.val_annotations:
            val = args.val_images or args.images
            val = val or find_images(args.val_annotations, args.val_annotations.parent)
            files["val"] = (args.val_annotations, val)
        return files
    if args.val_annotations or args.val_images:
        raise UserError(
            "--val-annotations and --val-images go with an annotation file; the splits of the "
            f"folder {args.annotations} are found by their names."
        )
    found = find_annotations(args.annotations)
    return {
        part: (path, args.images or find_images(path, args.annotations))
        for part, path in found.items()
    }


def _nothing_left(file: CocoFile, left_out: dict[str, int]) -> str:
    reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    return f"{file.path} has {len(file.pictures)} images, none of them for training: {reasons}."


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


def _divide(
    annotations: Path, images: Path, args: argparse.Namespace, out: Path
) -> dict[str, tuple[Path, Path]]:
    content = json.loads(annotations.read_bytes())
    numbers = [picture["id"] for picture in content["images"]]
    if len(numbers) < 2:
        raise UserError(f"{annotations} has one picture; two are needed, one to check with.")
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
        files[part] = (path, images)
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
