"""Read COCO annotation files: checks, classes, and the annotations that training uses.

As in the official code (mmdetection 2.28), training leaves out crowds and annotations that are
marked ``ignore``, lie outside their image, have no area, or have a side below one pixel.
pycocotools only decodes masks here, because it accepts broken files without a message.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from src.data.formats.checked_classes import read_frequencies, read_image_labels
from src.data.formats.coco_columns import AnnotationRows, read_columns
from src.data.formats.coco_entries import (
    MAX_POLYGON_COST,
    Annotation,
    check_categories,
    check_images,
    find_categories,
    shown,
)
from src.errors import UserError, agreed, counted

MAX_ANNOTATIONS = 10_000
"""Default of the largest number of annotations of an image."""

_log = logging.getLogger(__name__)

_PARTS = ("images", "annotations", "categories")
_MIN_SIDE = 1e-3  # pixels; float32 cannot tell the sides of a narrower box apart
_MAX_IMAGE_COST = 10 * MAX_POLYGON_COST  # of all polygons of an image
_GZIP = b"\x1f\x8b"
_MAX_DIGITS = 300  # of an integer that fits a float
_REASONS = ("", "crowd", "ignored", "no area", "a box outside the image", "no usable mask")
_USABLE, _CROWD, _IGNORED, _NO_AREA, _OUTSIDE, _NO_MASK = range(len(_REASONS))


class CocoFile:
    """A checked annotation file.

    Annotations are kept as arrays (`coco_columns`), because forked loader workers would gradually
    copy millions of Python objects.

    Args:
        path: The json file.
        masks: Whether training leaves out annotations without a usable mask.
        classes: Names in label order, each with the id it has if the file does not list it; the
            categories of the file are matched by name. Default: the categories of the file, sorted
            by id.
        max_annotations: Largest number of annotations of an image.
        content: Content of the file, if `read_coco` has read it already.

    Attributes:
        image_labels: Classes that were checked in each image; None if the file does not say so.
        frequencies: ``"r"``, ``"c"`` or ``"f"`` of each class in LVIS; otherwise empty.

    Raises:
        UserError: If the file is missing, not a COCO json, or inconsistent; the message names file
            and id.
    """

    def __init__(
        self,
        path: str | Path,
        masks: bool = True,
        classes: Mapping[str, int] | None = None,
        max_annotations: int = MAX_ANNOTATIONS,
        content: dict[str, list[Any]] | None = None,
    ) -> None:
        self.path, self.masks = Path(path), masks
        with _paused_collection():
            content = read_coco(self.path) if content is None else content
            self.listed = check_categories(content["categories"], self.path)
            self.categories = self.listed
            if classes is not None:
                self.categories = find_categories(self.listed, classes, self.path)
            self.images = check_images(content["images"], self.path)
            label_of = {number: label for label, number in enumerate(self.categories)}
            self.image_labels = read_image_labels(content["images"], label_of, self.path)
            self.frequencies = read_frequencies(content["categories"], self.categories)
            entries = content["annotations"]
            columns = read_columns(entries, self.images, label_of, self.path)
        self._rows = AnnotationRows(columns, self.images)
        self.num_annotations = self._rows.counts
        self._check_amounts(max_annotations)
        reasons = self._reasons(slice(None))
        counts = self.count_training_annotations()
        self.num_usable = int(counts.sum())
        self.objects_of_class = Counter(dict(enumerate(counts.tolist())))
        self.left_out = self._report(reasons, entries)

    @property
    def class_names(self) -> list[str]:
        """Names of the categories in label order."""
        return list(self.categories.values())

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories in label order."""
        return list(self.categories)

    def annotations(self, index: int) -> list[Annotation]:
        """Annotations of an image as in the file, with the class index as ``category_id``."""
        return [self._rows.annotation(int(row)) for row in self._rows.of(index)]

    def training_annotations(self, index: int) -> tuple[list[Annotation], NDArray[np.float32]]:
        """Annotations of an image that training uses, and their boxes.

        Returns:
            The annotations, and ``x1, y1, x2, y2`` clipped to the image, shape ``(N, 4)``.
        """
        rows = self._rows.of(index)
        rows = rows[self._reasons(rows) == _USABLE]
        boxes = self._rows.clipped_boxes(rows).astype(np.float32)
        return [self._rows.annotation(int(row)) for row in rows], boxes

    def count_training_annotations(
        self, indices: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Number of annotations of every class that training uses, ``(num_classes,)``.

        Args:
            indices: Images to count; default is all.
        """
        columns = self._rows.columns
        chosen = self.is_usable()
        if indices is not None:
            is_asked_for = np.zeros(len(self.images), dtype=bool)
            is_asked_for[indices] = True
            chosen &= is_asked_for[columns.image]
        return np.bincount(columns.label[chosen], minlength=len(self.categories))

    def boxes(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All boxes, in the order of the file.

        Returns:
            ``x, y, width, height`` as in the file, ``(N, 4)``, and width and height of the image of
            each, ``(N, 2)``.
        """
        return self._rows.columns.box, self._rows.extents(slice(None))

    def is_usable(self) -> NDArray[np.bool_]:
        """Whether training uses each annotation, ``(N,)``, in the order of the file."""
        return self._reasons(slice(None)) == _USABLE

    def classes_of_images(self) -> list[set[int]]:
        """Class indices of the annotations of each image that training uses."""
        columns = self._rows.columns
        usable = np.flatnonzero(self.is_usable())
        found: list[set[int]] = [set() for _ in self.images]
        for row in usable:
            found[columns.image[row]].add(int(columns.label[row]))
        return found

    def images_of_classes(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Which images have a class, including annotations that training leaves out.

        Args:
            indices: Images to look at.

        Returns:
            Positions in ``indices`` for each class, increasing.
        """
        position = np.full(len(self.images), -1)
        position[indices] = np.arange(len(indices))
        columns = self._rows.columns
        where = position[columns.image]
        pairs = np.unique(np.stack([columns.label, where])[:, where >= 0], axis=1)
        ends = np.searchsorted(pairs[0], np.arange(1, len(self.categories)))
        return np.split(pairs[1].astype(np.int64), ends)

    def _reasons(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int8]:
        """Why each annotation is left out of training, as an index of `_REASONS`."""
        columns = self._rows.columns
        boxes = self._rows.clipped_boxes(rows)
        narrow = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=math.inf) < _MIN_SIDE
        no_area = (columns.area[rows] <= 0) | (columns.box[rows, 2:] < 1).any(axis=1)
        conditions = {
            _CROWD: columns.crowd[rows],
            _IGNORED: columns.ignore[rows],
            _NO_AREA: no_area,
            _OUTSIDE: narrow,
            _NO_MASK: ~columns.has_mask[rows] & self.masks,
        }
        return np.select(list(conditions.values()), list(conditions), _USABLE).astype(np.int8)

    def _check_amounts(self, max_annotations: int) -> None:
        """Refuse images whose annotations would exhaust the memory or take hours."""
        if not len(self.images):
            return
        index = int(self.num_annotations.argmax())
        if self.num_annotations[index] > max_annotations:
            raise UserError(
                f"{self.path}: the image {shown(self.images[index].id)} has "
                f"{self.num_annotations[index]} annotations; expected up to {max_annotations} "
                "(data.max_annotations, or --max-annotations of prepare)."
            )
        columns = self._rows.columns
        cost = np.bincount(columns.image, columns.cost, len(self.images))
        index = int(cost.argmax())
        if cost[index] > _MAX_IMAGE_COST:
            raise UserError(
                f"{self.path}: the polygons of the image {shown(self.images[index].id)} have "
                f"outlines of {cost[index]:,.0f} pixels in total; expected up to "
                f"{_MAX_IMAGE_COST:,}."
            )

    def _report(self, reasons: NDArray[np.int8], entries: list[Any]) -> dict[str, int]:
        """Warn about invalid annotations, which training leaves out.

        Returns:
            Their number for each reason.
        """
        found: dict[str, int] = {}
        for code in (_NO_AREA, _OUTSIDE, _NO_MASK):
            rows = np.flatnonzero(reasons == code)
            if not len(rows):
                continue
            found[_REASONS[code]] = len(rows)
            key, what = ("id", "id") if "id" in entries[rows[0]] else ("image_id", "of the image")
            what += "s" * (len(rows) > 1)
            ids = ", ".join(shown(entries[row].get(key)) for row in rows[:5])
            _log.warning(
                "%s: %s %s left out of training because of %s (%s %s)",
                self.path,
                counted(len(rows), "annotation"),
                agreed(len(rows), "is", "are"),
                _REASONS[code],
                what,
                ids + (", ..." if len(rows) > 5 else ""),
            )
        return found


def training_images(
    file: CocoFile,
    *,
    keep_empty: bool,
    min_size: int,
    indices: Sequence[int] | None = None,
) -> tuple[list[int], dict[str, int]]:
    """Images of a file that training uses.

    Args:
        file: The annotations.
        keep_empty: Keep images without annotations.
        min_size: Smallest side in pixels.
        indices: Images to choose from; default is all.

    Returns:
        Their indices, and the number of images that are left out for each reason, which names the
        setting.
    """
    kept: list[int] = []
    left_out: Counter[str] = Counter()
    for index in range(len(file.images)) if indices is None else indices:
        if min(file.images[index].size) < min_size:
            left_out[f"with a side below {min_size} pixels (data.min_size)"] += 1
        elif not (keep_empty or file.num_annotations[index]):
            left_out["without annotations (data.keep_empty)"] += 1
        else:
            kept.append(index)
    return kept, dict(left_out)


def usable_polygons(segmentation: list[Any]) -> list[list[float]]:
    """Polygons of at least three corners; pycocotools would read two corners as a box."""
    return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]


def decode_mask(annotation: Annotation, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Mask of an annotation, 0 and 1, ``(H, W)``; all 0 if it has no usable polygon."""
    segmentation, (height, width) = annotation["segmentation"], size
    if isinstance(segmentation, list):
        polygons = usable_polygons(segmentation)
        if not polygons:
            return np.zeros(size, np.uint8)
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return np.asarray(coco_mask.decode(code), dtype=np.uint8)


def for_scoring(annotation: Annotation, size: tuple[int, int]) -> Annotation:
    """The annotation for the COCO tools, without polygons that they would misread."""
    segmentation = annotation["segmentation"]
    if not isinstance(segmentation, list):
        return annotation
    polygons = usable_polygons(segmentation)
    if not polygons or len(polygons) < len(segmentation):
        empty = {"size": list(size), "counts": [size[0] * size[1]]}
        return annotation | {"segmentation": polygons or empty}
    return annotation


def read_coco(path: Path) -> dict[str, list[Any]]:
    """Read a COCO json; only its top level is checked.

    Raises:
        UserError: If the file is missing or not a COCO json.
    """
    if not path.is_file():
        raise UserError(
            f"The annotation file {path} does not exist; check data.root and the names of the "
            "annotation files (data.train_annotations, data.val_annotations)."
        )
    content = parse_json(path)
    if isinstance(content, dict) and {"images", "categories"} <= content.keys():
        content.setdefault("annotations", [])  # lists of test images have none
    lacking = [
        part
        for part in _PARTS
        if not isinstance(content, dict) or not isinstance(content.get(part), list)
    ]
    if lacking:
        raise UserError(
            f"{path} is not a COCO annotation file: it has no list "
            f"{', '.join(map(repr, lacking))}; expected an object with the lists 'images', "
            "'annotations' and 'categories'."
        )
    return content


def parse_json(path: Path) -> Any:
    """Content of an annotation file.

    Raises:
        UserError: If it is not json, compressed, nested too deeply, or larger than the memory.
    """
    try:
        text = path.read_bytes()
    except MemoryError as error:
        raise UserError(
            f"There is not enough memory to read the annotation file {path} of "
            f"{path.stat().st_size / 2**30:.1f} GiB."
        ) from error
    if text.startswith(_GZIP):
        raise UserError(f"The annotation file {path} is compressed; unpack it with gunzip.")
    try:
        with _paused_collection():
            try:
                return json.loads(text)
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise
            except ValueError:  # an integer of thousands of digits; the checks will name its entry
                return json.loads(text, parse_int=_parse_int)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(_not_json(path, error)) from error
    except RecursionError as error:
        raise UserError(
            f"The annotation file {path} has lists or objects nested more deeply than any COCO "
            "file."
        ) from error


def _not_json(path: Path, error: json.JSONDecodeError | UnicodeDecodeError) -> str:
    """What is wrong with a file: an error at its end means that the rest is missing."""
    if isinstance(error, UnicodeDecodeError):
        is_cut_off = error.reason == "unexpected end of data"
    elif not error.doc.strip():
        return f"The annotation file {path} is empty."
    else:
        is_open = error.msg.startswith("Unterminated string")  # at the start of the string
        is_cut_off = is_open or error.pos >= len(error.doc.rstrip())
    if is_cut_off:
        size = path.stat().st_size
        return (
            f"The annotation file {path} ends in the middle of the json, after {size} bytes: it"
            " seems to be cut off. Copy, download or export it again."
        )
    return f"The annotation file {path} is not json: {error}."


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Pause garbage collection, which would scan millions of new objects again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
