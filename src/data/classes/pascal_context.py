"""Names of the 59 most frequent classes of Pascal Context (Mottaghi et al., CVPR 2014).

They are in alphabetical order, as the converter of mmsegmentation numbers them from 1. Their
colours there are those of ADE20K from the second one.
"""

from __future__ import annotations

from src.data.classes.ade20k import ade20k_palette
from src.types import Colour

PASCAL_CONTEXT_NAMES: tuple[str, ...] = tuple(
    """
aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet,
car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food,
grass, ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform,
pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree,
truck, tvmonitor, wall, water, window, wood
""".replace("\n", " ")
    .strip()
    .split(", ")
)
"""Names in label order; the files count them from 1."""


def pascal_context_palette() -> list[Colour]:
    """Red, green and blue, 0 to 255, of each class."""
    return ade20k_palette()[1 : len(PASCAL_CONTEXT_NAMES) + 1]
