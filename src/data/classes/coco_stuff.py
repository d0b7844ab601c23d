"""Names of the 91 stuff categories of COCO-Stuff, and the numbering of all its classes.

Source: labels.txt of nightrome/cocostuff (Caesar et al., "COCO-Stuff: Thing and Stuff Classes in
Context", CVPR 2018). Categories 1 to 91 are things as in COCO, eleven of which never occur; 92 to
182 are stuff.
"""

from __future__ import annotations

from src.data.classes.coco import COCO_CATEGORIES

_FIRST_STUFF = 92
_STUFF = (
    """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""".replace("\n", " ")
    .strip()
    .split(", ")
)

COCO_STUFF_CATEGORIES: dict[int, str] = COCO_CATEGORIES | dict(enumerate(_STUFF, _FIRST_STUFF))
"""Number in labels.txt, and name, of the 171 classes in label order."""

COCO_STUFF_VALUES: tuple[int, ...] = tuple(number - 1 for number in COCO_STUFF_CATEGORIES)
"""Number of each class in the pixel maps (``stuffthingmaps``), which count from 0."""
