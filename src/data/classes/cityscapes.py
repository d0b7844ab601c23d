"""Classes of Cityscapes, and the classes of Mapillary Vistas that correspond to them.

Sources: label definitions of the Cityscapes scripts (mcordts/cityscapesScripts, MIT; Cordts et al.,
"The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016), and the label transform
of the official InternImage models for Mapillary Vistas v1.2 (Neuhold et al., ICCV 2017).
"""

from __future__ import annotations

from src.types import IGNORE_LABEL, Colour

CITYSCAPES_PALETTE: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""Name and colour of the 19 evaluated classes, in the order of their train ids."""

CITYSCAPES_NAMES: tuple[str, ...] = tuple(CITYSCAPES_PALETTE)
"""Names in the order of the train ids."""

CITYSCAPES_IGNORED: tuple[str, ...] = (
    "unlabeled",
    "ego vehicle",
    "rectification border",
    "out of roi",
    "static",
    "dynamic",
    "ground",
    "parking",
    "rail track",
    "guard rail",
    "bridge",
    "tunnel",
    "polegroup",
    "caravan",
    "trailer",
)
"""Labels of polygons that are drawn but not evaluated."""

CITYSCAPES_NOT_DRAWN = "license plate"
"""Label of polygons that are left out: what lies under them counts."""

_MAPILLARY_IDS = 66
_MAPILLARY: dict[str, tuple[int, ...]] = {
    "road": (13, 24, 41),  # road, lane marking, manhole
    "sidewalk": (2, 15),  # curb, sidewalk
    "building": (17,),
    "wall": (6,),
    "fence": (3,),
    "pole": (45, 47),  # pole, utility pole
    "traffic light": (48,),
    "traffic sign": (50,),  # its front
    "vegetation": (30,),
    "terrain": (29,),
    "sky": (27,),
    "person": (19,),
    "rider": (20, 21, 22),  # bicyclist, motorcyclist, other rider
    "car": (55,),
    "truck": (61,),
    "bus": (54,),
    "train": (58,),  # on rails
    "motorcycle": (57,),
    "bicycle": (52,),
}

MAPILLARY_TO_CITYSCAPES: dict[int, int] = dict.fromkeys(range(_MAPILLARY_IDS), IGNORE_LABEL) | {
    value: CITYSCAPES_NAMES.index(name) for name, values in _MAPILLARY.items() for value in values
}
"""Train id of each number in the label maps of Mapillary Vistas v1.2; 255 is unlabelled."""
