"""Seeds of annotation files, images and label maps, and what reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.custom.colours import read_pixels
from src.data.formats.coco_json import CocoFile, decode_mask, for_scoring
from src.data.formats.label_maps import read_label_map
from src.decoding import decode
from tests.fuzz.harness import Mutate
from tests.fuzz.mutations import damage_exif, damage_json, damage_png, png_chunk


@dataclass(frozen=True)
class Target:
    """A kind of file: intact ones, how they are damaged, what reads them."""

    name: str
    seeds: list[bytes]
    mutate: Mutate
    read: Callable[[Path], Any]


def targets() -> dict[str, Target]:
    """All kinds by name."""
    return {
        "coco": Target("annotations.json", _coco_seeds(), damage_json, read_coco_file),
        "jpeg": Target("photo.jpg", _jpeg_seeds(), damage_exif, read_image),
        "png": Target("image.png", _png_seeds(), damage_png, read_image),
        "label": Target("label.png", _label_seeds(), damage_png, read_labels),
    }


def read_coco_file(path: Path) -> None:
    """Everything that a dataset and the scores ask of an annotation file."""
    file = CocoFile(path)
    file.count_training_annotations()
    for index, image in enumerate(file.images):
        image.path(path.parent, path)
        learned, boxes = file.training_annotations(index)
        assert boxes.shape == (len(learned), 4)
        assert np.isfinite(boxes).all()
        for annotation in file.annotations(index):
            scored = for_scoring(annotation, image.size)
            if image.size[0] * image.size[1] < 1_000_000:  # that of the image, by then
                assert decode_mask(scored, image.size).shape == image.size


def read_image(path: Path) -> None:
    """An image as a detector's dataset returns it."""
    assert decode(path, upright=True).mode == "RGB"


def read_labels(path: Path) -> None:
    """A label map as training and as ``prepare from-masks`` read it."""
    try:
        read_label_map(path, 4)
    finally:
        read_pixels(str(path))


def _coco_seeds() -> list[bytes]:
    square = [[10, 10, 50, 10, 50, 40, 10, 40]]
    base = {"category_id": 1, "bbox": [10, 10, 40, 30], "area": 900, "iscrowd": 0}
    shapes: list[Any] = [square, square * 2, {"size": [48, 64], "counts": [100, 50, 2922]}]
    shapes.append({"size": [48, 64], "counts": "PP3"})  # one run of 3072
    images = [
        {"id": i, "file_name": f"{i}.png", "height": 48, "width": 64, "license": 1} for i in (1, 2)
    ]
    annotations = [
        base | {"id": i, "image_id": i % 2 + 1, "segmentation": shape}
        for i, shape in enumerate(shapes)
    ]
    content = {"info": {"year": 2026}, "images": images, "annotations": annotations}
    categories = [{"id": 1, "name": "cat"}, {"id": 9, "name": "dog", "supercategory": "animal"}]
    return [json.dumps(content | {"categories": categories}).encode()]


def _pixels(size: tuple[int, int] = (24, 32)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    exif[0x011A] = 72.5
    exif.get_ifd(0x8769)[0x927C] = b"notes of the maker" * 3
    exif.get_ifd(0x8769)[0x9000] = b"0230"
    exif.get_ifd(0x8825)[2] = (1.0, 2.5, 3.0)
    return exif


def _encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def _jpeg_seeds() -> list[bytes]:
    image, other = Image.fromarray(_pixels()), Image.new("RGB", (32, 24), "blue")
    cmyk = image.convert("CMYK")
    return [
        _encoded(image, "JPEG", exif=_exif()),
        _encoded(image, "JPEG", exif=_exif(), progressive=True),
        _encoded(cmyk, "JPEG", exif=_exif()),
        _encoded(image, "MPO", save_all=True, append_images=[other], exif=_exif()),
    ]


def _png_seeds() -> list[bytes]:
    image = Image.fromarray(_pixels())
    plain = _encoded(image, "PNG", exif=_exif())
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    return [
        plain,
        _encoded(image.convert("P"), "PNG", exif=_exif(), transparency=bytes(range(256))),
        _encoded(image.convert("RGBA"), "PNG", exif=_exif()),
        plain[:33] + png_chunk(b"iTXt", xmp) + plain[33:],
        _encoded(image, "PNG", save_all=True, append_images=[image], exif=_exif()),
    ]


def _label_seeds() -> list[bytes]:
    labels = (np.arange(24 * 32).reshape(24, 32) % 4).astype(np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette([v for i in range(4) for v in (i * 60, 255 - i * 60, 9)])
    return [
        _encoded(Image.fromarray(labels), "PNG"),
        _encoded(palette, "PNG"),
        _encoded(palette, "PNG", bits=2),
        _encoded(Image.fromarray(labels.astype(np.uint16)), "PNG"),
        _encoded(Image.fromarray(labels > 1), "PNG"),
        _encoded(Image.fromarray(np.dstack([labels] * 2), "LA"), "PNG"),
    ]
