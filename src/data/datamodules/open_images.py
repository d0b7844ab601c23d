"""OpenImages V6: boxes of 601 classes in csv files (Kuznetsova et al., IJCV 2020)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from src.data.classes.open_images import OPEN_IMAGES_NAMES
from src.data.datamodules.base import check
from src.data.datamodules.coco import COCODataModule
from src.data.formats.open_images_csv import (
    read_ancestors,
    read_boxes,
    read_classes,
    read_image_level_labels,
)
from src.types import ClassFacts


class OpenImagesDataModule(COCODataModule):
    """Data module of OpenImages.

    The files do not give the sizes of the images, so `setup` reads the headers of all images.

    Args:
        root: Folder that the other paths are in.
        train_images: Folder of training images.
        train_annotations: Boxes of the training images.
        val_images: Folder of validation images.
        val_annotations: Boxes of the validation images.
        class_file: Machine id and name of each class in label order.
        hierarchy: More general classes of each class, for `OpenImagesMetric`; null for none.
        val_image_labels: Labels of whole validation images, for `OpenImagesMetric`; null for none.
        test_image_labels: The same of the images for ``test`` if ``test_annotations`` is given;
            otherwise ``test`` uses those of validation.
        kwargs: See `COCODataModule`; there are no masks.
    """

    def __init__(
        self,
        root: str = "data/OpenImages",
        train_images: str = "train",
        train_annotations: str = "annotations/oidv6-train-annotations-bbox.csv",
        val_images: str = "validation",
        val_annotations: str = "annotations/validation-annotations-bbox.csv",
        class_file: str = "annotations/class-descriptions-boxable.csv",
        hierarchy: str | None = "annotations/bbox_labels_600_hierarchy.json",
        val_image_labels: str | None = (
            "annotations/validation-annotations-human-imagelabels-boxable.csv"
        ),
        test_image_labels: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root=root,
            train_images=train_images,
            train_annotations=train_annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            masks=False,
            **kwargs,
        )
        self.class_file = Path(root) / class_file
        check(
            self._given_names is None or not self.class_file.is_file(),
            "class_names",
            self._given_names,
            f"null if there is {self.class_file}, which lists the classes",
        )
        has_test = kwargs.get("test_annotations") is not None
        check(
            has_test or test_image_labels is None,
            "test_image_labels",
            test_image_labels,
            "a file together with data.test_annotations, or null",
        )
        self.hierarchy = None if hierarchy is None else Path(root) / hierarchy
        self.image_labels = {
            "train": None,
            "val": val_image_labels,
            "test": test_image_labels if has_test else val_image_labels,
        }

    @classmethod
    def official_class_names(cls) -> list[str]:
        """Names of the 601 classes of OpenImages V6."""
        return list(OPEN_IMAGES_NAMES)

    @cached_property
    def categories(self) -> dict[int, str]:
        """Id and name of every class in label order; ids count from 1."""
        if self._given_classes is not None and not self.class_file.is_file():
            return {number: name for name, number in self._given_classes.items()}
        return dict(enumerate(read_classes(self.class_file).values(), 1))

    @cached_property
    def _label_of(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(read_classes(self.class_file))}

    @cached_property
    def class_facts(self) -> ClassFacts:
        """The hierarchy of the classes."""
        if self.hierarchy is None:
            return ClassFacts()
        return ClassFacts(ancestors=read_ancestors(self.hierarchy, self._label_of))

    def read_annotations(self, split: str) -> dict[str, list[Any]]:
        """Images and boxes of a split, and the labels of whole images."""
        if split != "train":
            _ = self.class_facts  # report a missing file now, not after the evaluation
        folder, annotation_file = self.splits[split]
        boxes = read_boxes(self.root / annotation_file, self._label_of)
        content = self.measured_images({name: f"{name}.jpg" for name in boxes}, folder)
        label_file = self.image_labels[split]
        if label_file is not None:
            labels = read_image_level_labels(self.root / label_file, self._label_of)
            for image in content:
                present, absent = labels.get(image["id"], ([], []))
                image["pos_category_ids"] = [label + 1 for label in present]
                image["neg_category_ids"] = [label + 1 for label in absent]
        return {
            "images": content,
            "annotations": [
                _annotation(box, image) for image in content for box in boxes[image["id"]]
            ],
            "categories": [{"id": n, "name": name} for n, name in self.categories.items()],
        }


def _annotation(box: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = box["corners"]
    width, height = image["width"], image["height"]
    return {
        "image_id": image["id"],
        "category_id": box["label"] + 1,
        "bbox": [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height],
        "is_group_of": int(box["is_group_of"]),
    }
