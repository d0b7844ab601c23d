"""``prepare from-coco``: COCO annotation files and their image folders.

Give one file (a part of it is used for validation), one file for training and one for validation,
or a folder with a file for each split.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src import files
from src.data.custom import recipe, split
from src.data.custom.coco_layout import find_annotations, find_images, neighbours
from src.data.custom.survey import Survey, survey
from src.data.formats.coco_json import MAX_ANNOTATIONS, CocoFile, read_coco, training_images
from src.data.formats.splits import SPLITS
from src.errors import UserError
from src.types import ImageId

_MIN_SIZE = 32  # pixels; data.min_size of the recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("annotations", type=Path, help="COCO file, or a folder with one for train, valid and test")
    add("--images", type=Path, help="folder of the images (default: searched nearby)")
    add(
        "--val-annotations",
        type=Path,
        help="COCO file of the validation images (default: a random split)",
    )
    add("--val-images", type=Path, help="folder of the validation images (default: as --images)")
    add(
        "--max-annotations",
        type=int,
        default=MAX_ANNOTATIONS,
        help="refuse images with more (%(default)s)",
    )
    split.add_arguments(parser)
    recipe.add_arguments(parser, "detection")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check, split, write the recipe and print the next commands.

    Raises:
        UserError: If a file is broken, an image is missing, or its size is not that of the json.
    """
    sources = _find_files(args)
    is_folder = args.annotations.is_dir()
    source = args.annotations if is_folder else sources["train"][1]
    name, out = split.target(args, source, searched=is_folder)
    annotations = sources["train"][0]
    content = read_coco(annotations)
    train = CocoFile(annotations, content=content, max_annotations=args.max_annotations)
    if not train.num_usable:
        raise UserError(
            f"{annotations} has no annotation with a box and a mask; Mask R-CNN needs both. For "
            "boxes without masks use configs/detection/dino_internimage_nano_laptop.yaml with "
            "--data.train_annotations, --data.train_images and the same for val."
        )
    readers = {"train": train}
    for part in sources.keys() - {"train"}:
        readers[part] = CocoFile(sources[part][0], max_annotations=args.max_annotations)
        _check_categories(train, readers[part])
    surveys = [_check_images(readers[part], sources[part][1], args.max_pixels) for part in sources]
    facts = {"source": str(annotations), "val_share": args.val_share, "seed": args.seed}
    indices = {part: np.arange(len(file.images)) for part, file in readers.items()}
    divided = {} if "val" in sources else _divide(train, args)
    indices |= divided
    chosen = indices["train"]
    kept, left_out = training_images(
        train, keep_empty=False, min_size=_MIN_SIZE, indices=chosen.tolist()
    )
    if not kept:
        raise UserError(_nothing_left(annotations, len(chosen), left_out))
    for part in divided:
        sources[part] = (out / "annotations" / f"{part}.json", sources["train"][1])
        readers[part] = train
    parts = [part for part in SPLITS if part in sources]
    learned = {part: readers[part].count_training_annotations(indices[part]) for part in parts}
    tested = f", {len(indices['test'])} test" if "test" in sources else ""
    print(
        f"{out}: {len(kept)} training and {len(indices['val'])} validation{tested} images; objects:"
    )
    for label, class_name in enumerate(train.class_names):
        print(f"  {class_name}: " + " + ".join(str(learned[part][label]) for part in parts))
    for reason, count in left_out.items():
        print(f"note: {count} of {len(chosen)} training images are left out: {reason}")
    never = _without_objects(train.class_names, learned["train"])
    if never:
        print(f"note: no training annotation of {never}: it cannot be learned")
    unseen = _without_objects(train.class_names, learned["val"])
    if unseen:
        print(f"note: no validation annotation of {unseen}: the metrics leave it out")
    for other in [] if args.annotations.is_dir() else neighbours(args.annotations):
        print(f"note: {other} is not used; give {args.annotations.parent.parent} to use all splits")
    print(f"Checked: {sum(surveys, Survey())}")
    data: dict[str, Any] = {"root": "."}
    for part, (path, images) in ((part, sources[part]) for part in parts):
        data[f"{part}_images"] = str(images)
        data[f"{part}_annotations"] = str(path)
    with split.start_over(out, ("annotations",), facts) as work:
        for part, part_indices in divided.items():
            numbers = {train.images[i].id for i in part_indices}
            _write_part(content, numbers, work / "annotations" / f"{part}.json")
        recipe.write(args, out / f"{name}.yaml", "detection", data, len(kept), work)


def _find_files(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Annotation file and image folder of each split that is given or found."""
    if not args.annotations.is_dir():
        for path in filter(None, (args.annotations, args.val_annotations)):
            if not path.is_file():
                raise UserError(f"The annotation file {path} does not exist.")
        images = args.images or find_images(args.annotations, args.annotations.parent)
        sources = {"train": (args.annotations, images)}
        if args.val_annotations:
            val = args.val_images or args.images
            val = val or find_images(args.val_annotations, args.val_annotations.parent)
            sources["val"] = (args.val_annotations, val)
        return sources
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


def _nothing_left(path: Path, images: int, left_out: dict[str, int]) -> str:
    reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    return f"{path} has {images} images, none of them for training: {reasons}."


def _without_objects(names: list[str], counts: NDArray[np.int64]) -> str:
    return ", ".join(name for name, count in zip(names, counts, strict=True) if not count)


def _check_categories(train: CocoFile, val: CocoFile) -> None:
    if train.categories != val.categories:
        raise UserError(
            f"{val.path} has other categories than {train.path}: {val.class_names} instead of "
            f"{train.class_names}. Both files must list the same ids and names."
        )


def _check_images(file: CocoFile, images: Path, max_pixels: int) -> Survey:
    """Decode every image of a file and compare its size with the entry."""
    paths = [str(image.path(images, file.path)) for image in file.images]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images of {file.path} are not in {images}; the "
            f"first is {missing[0]}. Check --images: file names in the json start from there."
        )
    if not file.images or not any(file.num_annotations):
        raise UserError(f"{file.path} has no annotated images, so there is nothing to train on.")
    found = survey(paths, max_pixels)
    for image, path in zip(file.images, paths, strict=True):
        height, width = found.sizes[path]
        if image.size not in ((height, width), (width, height)):
            raise UserError(
                f"{path} is {width}x{height} pixels, but {file.path} says "
                f"{image.size[1]}x{image.size[0]}; the annotations would be misplaced."
            )
    return found


def _divide(file: CocoFile, args: argparse.Namespace) -> dict[str, NDArray[np.int64]]:
    """Indices of the images of each part."""
    if len(file.images) < 2:
        raise UserError(f"{file.path} has one image; two are needed, one for validation.")
    numbers = [str(index) for index in range(len(file.images))]
    divided = split.split(numbers, args.val_share, args.seed)
    return {
        part: np.array(chosen, dtype=np.int64)
        for part, chosen in zip(("train", "val"), divided, strict=True)
    }


def _write_part(content: dict[str, Any], kept: set[ImageId], path: Path) -> None:
    """Write the entries of some images, in the order of the source and unchanged."""
    selected = {
        "images": [p for p in content["images"] if p["id"] in kept],
        "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
    }
    files.write_json(path, content | selected)
