"""Names of the 40 classes of NYU Depth v2.

Sources: Silberman et al., ECCV 2012, with the 40 classes of Gupta et al., CVPR 2013; spelling and
colours, the first ones of ADE20K, as in the official InternImage model.
"""

from __future__ import annotations

from src.data.classes.ade20k import ade20k_palette
from src.types import Colour

NYU_DEPTH_V2_NAMES: tuple[str, ...] = tuple(
    """
wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds,
desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refridgerator,
television, paper, towel, shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp,
bathtub, bag, otherstructure, otherfurniture, otherprop
""".replace("\n", " ")
    .strip()
    .split(", ")
)
"""Names in label order; the files count them from 1."""


def nyu_depth_v2_palette() -> list[Colour]:
    """Red, green and blue, 0 to 255, of each class."""
    return ade20k_palette()[: len(NYU_DEPTH_V2_NAMES)]
