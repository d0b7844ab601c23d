"""CrowdHuman: persons in crowds (Shao et al., arXiv 1805.00123), annotated in odgt files."""

from __future__ import annotations

from typing import Any

from src.data.datamodules.coco import COCODataModule
from src.data.formats.crowd_human_odgt import Body, read_odgt

_CATEGORIES = {1: "person"}


class CrowdHumanDataModule(COCODataModule):
    """Data module of CrowdHuman.

    The files do not give the sizes of the images, so `setup` reads the headers of all images.

    Args:
        root: Folder that the other paths are in.
        train_images: Folder of training images.
        train_annotations: Annotation file of the training images.
        val_images: Folder of validation images.
        val_annotations: Annotation file of the validation images.
        body: Box of a person: ``fbox`` (full body), ``vbox`` (its visible part) or ``hbox`` (head).
        kwargs: See `COCODataModule`; there are no masks.
    """

    def __init__(
        self,
        root: str = "data/CrowdHuman",
        train_images: str = "Images",
        train_annotations: str = "annotation_train.odgt",
        val_images: str = "Images",
        val_annotations: str = "annotation_val.odgt",
        body: Body = "fbox",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root=root,
            train_images=train_images,
            train_annotations=train_annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            class_names=self.official_class_names(),
            masks=False,
            **kwargs,
        )
        self.body: Body = body

    @classmethod
    def official_class_names(cls) -> list[str]:
        """The only class, person."""
        return list(_CATEGORIES.values())

    def read_annotations(self, split: str) -> dict[str, list[Any]]:
        """Images and boxes of a split."""
        folder, annotation_file = self.splits[split]
        persons = read_odgt(self.root / annotation_file, self.body)
        images = self.measured_images({name: f"{name}.jpg" for name in persons}, folder)
        annotations = [
            person | {"image_id": image["id"]}
            for image in images
            for person in persons[image["id"]]
        ]
        categories = [{"id": number, "name": name} for number, name in _CATEGORIES.items()]
        return {"images": images, "annotations": annotations, "categories": categories}
