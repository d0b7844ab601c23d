"""Names of the 20 classes of PASCAL VOC (Everingham et al., IJCV 2010)."""

from __future__ import annotations

VOC_NAMES: tuple[str, ...] = tuple(
    """
aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
""".replace("\n", " ")
    .strip()
    .split(", ")
)
"""Names in alphabetical order."""
