"""Checks of dataset folders before training: a file per kind of layout, listed in ``LAYOUTS``."""

from src.data.verify import ade20k, boxes, imagenet, imagenet22k, inaturalist, label_maps
from src.data.verify.report import Layout

LAYOUTS: dict[str, Layout] = {
    "imagenet": imagenet,
    "imagenet22k": imagenet22k,
    "inaturalist": inaturalist,
    "ade20k": ade20k,
    "cityscapes": label_maps.CITYSCAPES,
    "mapillary": label_maps.MAPILLARY,
    "coco-stuff": label_maps.COCO_STUFF,
    "pascal-context": label_maps.PASCAL_CONTEXT,
    "nyu-depth-v2": label_maps.NYU_DEPTH_V2,
    "coco": boxes.COCO,
    "lvis": boxes.LVIS,
    "openimages": boxes.OPEN_IMAGES,
    "voc": boxes.VOC,
    "crowdhuman": boxes.CROWD_HUMAN,
}
"""Layouts of ``python -m src verify``."""
