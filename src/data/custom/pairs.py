"""Match images with label maps in the usual folder layouts.

Images and label maps may be in two folders, in one (``1.jpg`` beside ``1_mask.png``), or in
subfolders of every split (``train/images``, ``train/masks``). If no suffix is given, the one that
fits most images is used.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from src.data.formats.image_files import list_images
from src.data.formats.splits import split_of
from src.errors import UserError, agreed, counted

IMAGE_FOLDERS = {"image", "images", "img", "imgs", "photos", "pictures", "jpegimages"}
"""Usual names of folders of images, in lower case."""
LABEL_FOLDERS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "labelmaps", "label_maps",
    "segmentation", "segmentations", "segmentationclass", "gt", "groundtruth", "ground_truth",
}  # fmt: skip
"""Usual names of folders of labels, in lower case."""
_USUAL = ".png"


@dataclass(frozen=True)
class Pair:
    """An image and its label map.

    Attributes:
        image: File of the image.
        mask: File of the label map.
        split: ``train``, ``val`` or ``test`` if a folder of the image has such a name.
        inside: Path of the image without the folders of splits and of images.
    """

    image: str
    mask: str
    split: str | None
    inside: Path


@dataclass(frozen=True)
class _File:
    path: str
    parents: tuple[str, ...]  # without folders of images or label maps; splits by their name
    name: str


def match_label_maps(
    images: Path,
    masks: Path,
    image_suffix: str | None,
    mask_suffix: str | None,
    *,
    skip_missing: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Match every image with its label map.

    Args:
        images: Folder of the images, searched at any depth.
        masks: Folder of the label maps; it may be the same, or one may be inside the other.
        image_suffix: Suffix of the image files that is not part of the common name.
        mask_suffix: Suffix of the label maps; default is inferred.
        skip_missing: Leave out images without a label map, with a note.

    Returns:
        The pairs, sorted by image, and notes for the user.

    Raises:
        UserError: If a folder or a label map is missing, or names are ambiguous; with
            ``skip_missing``, if no image has a label map.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"The folder {folder} does not exist.")
    shown, maps = _two_kinds(images, masks, mask_suffix)
    maps = maps if mask_suffix else _with_one_extension(maps)
    if image_suffix is not None:
        shown = [file for file in shown if file.name.endswith(image_suffix)]
    if not shown:
        ending = f" ending in {image_suffix}" if image_suffix else ""
        raise UserError(f"The folder {images} holds no images{ending}.")
    ends = [image_suffix] if image_suffix is not None else [None, *_common_end(shown)]
    tries = [(end, _found_suffix(shown, maps, end, mask_suffix)) for end in ends]
    image_end, suffix = max(tries, key=lambda found: _covered(shown, maps, *found))
    by_name = {(file.parents, file.name): file.path for file in maps}
    names = {id(file): _stem(file.name, image_end) + suffix for file in shown}
    taken: dict[tuple[tuple[str, ...], str], _File] = {}
    for file in shown:
        other = taken.setdefault((file.parents, names[id(file)]), file)
        if other is not file:
            raise UserError(
                f"The images {other.path} and {file.path} share the label map {names[id(file)]}; "
                "give them different names."
            )
    missing = [file for file in shown if (file.parents, names[id(file)]) not in by_name]
    notes = []
    if missing:
        without = (
            f"{len(missing)} of {counted(len(shown), 'image')} in {images}"
            f" {agreed(len(missing), 'has', 'have')} no label map in {masks}"
        )
        first = f"{missing[0].path}, whose label map should be named {names[id(missing[0])]}"
        if not skip_missing or len(missing) == len(shown):
            leave_out = " Or leave out such images with --skip-broken." * (not skip_missing)
            raise UserError(
                f"{without}; the first is {first}. --mask-suffix and --image-suffix say how the"
                f" names end.{leave_out}"
            )
        are = agreed(len(missing), "is", "are")
        notes.append(f"{without} and {are} left out (--skip-broken); the first is {first}")
        shown = [file for file in shown if (file.parents, names[id(file)]) in by_name]
    if (image_end, suffix) != (None, _USUAL):
        end = f" in place of {image_end}" if image_end else ""
        notes.append(f"label maps are the files ending in {suffix}{end}")
    if len(maps) > len(shown):
        further = len(maps) - len(shown)
        belongs = "belongs" if further == 1 else "belong"
        notes.append(f"{counted(further, 'further file')} in {masks} {belongs} to no image")
    return [_pair(file, by_name[file.parents, names[id(file)]]) for file in shown], notes


def _pair(file: _File, mask: str) -> Pair:
    split = next((s for part in file.parents if (s := split_of(part))), None)
    kept = [part for part in file.parents if split is None or part != split]
    return Pair(file.path, mask, split, Path(*kept, file.name))


def _two_kinds(
    images: Path, masks: Path, mask_suffix: str | None
) -> tuple[list[_File], list[_File]]:
    """Images and label maps, even if one folder holds both."""
    if images.resolve() != masks.resolve():
        shown, maps = list_images(images), list_images(masks)
        if masks.resolve().is_relative_to(images.resolve()):
            inner = {os.path.realpath(path) for path in maps}
            shown = [path for path in shown if os.path.realpath(path) not in inner]
        elif images.resolve().is_relative_to(masks.resolve()):
            inner = {os.path.realpath(path) for path in shown}
            maps = [path for path in maps if os.path.realpath(path) not in inner]
        return [_file(p, images, set()) for p in shown], [_file(p, masks, set()) for p in maps]
    files = list_images(images)
    below = [path for path in files if _folders_of(path, images) & LABEL_FOLDERS]
    if below:
        words, apart = IMAGE_FOLDERS | LABEL_FOLDERS, set(below)
        shown = [path for path in files if path not in apart]
        return [_file(p, images, words) for p in shown], [_file(p, images, words) for p in below]
    every = [_file(path, images, set()) for path in files]
    suffix = mask_suffix or _suffix_beside(every, images)
    return (
        [file for file in every if not file.name.endswith(suffix)],
        [file for file in every if file.name.endswith(suffix)],
    )


def _with_one_extension(maps: list[_File]) -> list[_File]:
    """Label maps of several extensions, named as if all had the usual one, unless names clash."""
    if len({Path(file.name).suffix for file in maps}) == 1:
        return maps
    named = [replace(file, name=f"{Path(file.name).stem}{_USUAL}") for file in maps]
    distinct = {(file.parents, file.name) for file in named}
    return named if len(distinct) == len(maps) else maps


def _suffix_beside(files: list[_File], folder: Path) -> str:
    """Suffix of label maps that lie beside their images."""
    fits = {
        suffix: _covered(
            [file for file in files if not file.name.endswith(suffix)],
            [file for file in files if file.name.endswith(suffix)],
            None,
            suffix,
        )
        / sum(not file.name.endswith(suffix) for file in files)
        for suffix in _suffixes(files, files, None)
        if any(not file.name.endswith(suffix) for file in files)
    }
    best = [s for s in fits if fits[s] == max(fits.values())]
    lossless = [s for s in best if not s.lower().endswith((".jpg", ".jpeg"))] or best
    if len(lossless) == 1:
        return lossless[0]
    raise UserError(
        f"{folder} is given for images and for label maps, and "
        + (
            f"the label maps may be the files ending in {' or in '.join(sorted(lossless))}; say "
            "which with --mask-suffix."
            if lossless
            else "no file has the name of another one with a suffix, such as 1_mask.png beside "
            "1.jpg; give the suffix with --mask-suffix, or give two folders."
        )
    )


def _file(path: str, root: Path, dropped: set[str]) -> _File:
    *parents, name = Path(path).relative_to(root).parts
    kept = (part for part in parents if part.lower() not in dropped)
    return _File(path, tuple(split_of(part) or part for part in kept), name)


def _found_suffix(
    images: list[_File], maps: list[_File], image_end: str | None, given: str | None
) -> str:
    """The suffix of label maps that fits most images; the usual one if it fits all."""
    if given is not None or _covered(images, maps, image_end, _USUAL) == len(images):
        return given or _USUAL
    fits = {s: _covered(images, maps, image_end, s) for s in _suffixes(images, maps, image_end)}
    best = sorted(suffix for suffix in fits if fits[suffix] == max(fits.values()))
    if len(best) > 1 and fits[best[0]] > 1:
        raise UserError(
            f"The label maps may be the files ending in {' or in '.join(best)}; say which with "
            "--mask-suffix."
        )
    return best[0] if best else _USUAL


def _suffixes(images: list[_File], maps: list[_File], image_end: str | None) -> Counter[str]:
    """Possible suffixes of label maps after the name of an image, and how often each occurs."""
    stems: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for file in images:
        stems[file.parents][_stem(file.name, image_end)] += 1
    own = {id(file) for file in images}
    found = Counter[str]()
    for file in maps:
        for end in range(1, len(file.name)):
            stem = file.name[:end]
            is_itself = id(file) in own and stem == _stem(file.name, image_end)
            if stems[file.parents][stem] > is_itself and "." in file.name[end:]:
                found[file.name[end:]] += 1
    return found


def _covered(images: list[_File], maps: list[_File], image_end: str | None, suffix: str) -> int:
    names = {(file.parents, file.name) for file in maps}
    return sum((file.parents, _stem(file.name, image_end) + suffix) in names for file in images)


def _stem(name: str, end: str | None) -> str:
    if end is not None and name.endswith(end):
        return name.removesuffix(end)
    return Path(name).stem


def _folders_of(path: str, root: Path) -> set[str]:
    return {part.lower() for part in Path(path).relative_to(root).parts[:-1]}


def _common_end(files: list[_File]) -> list[str]:
    """Suffixes that all names share, such as ``_leftImg8bit.png``; longest first."""
    if len(files) < 2:
        return []
    first = files[0].name
    starts = (i for i, letter in enumerate(first) if letter in "_-.")
    return [first[i:] for i in starts if all(file.name.endswith(first[i:]) for file in files)]
