"""Generated colours for the classes of a dataset that has no palette of its own."""

from __future__ import annotations

from src.types import Colour

_FIRST: tuple[Colour, ...] = (
    (67, 99, 216),  # blue
    (245, 130, 49),  # orange
    (60, 180, 75),  # green
    (230, 25, 75),  # red
    (255, 225, 25),  # yellow
    (145, 30, 180),  # purple
    (66, 212, 244),  # cyan
    (240, 50, 230),  # magenta
    (191, 239, 69),  # lime
    (154, 99, 36),  # brown
    (250, 190, 212),  # pink
    (70, 153, 144),  # teal
    (220, 190, 255),  # lavender
    (128, 0, 0),  # maroon
    (170, 255, 195),  # mint
    (128, 128, 0),  # olive
    (255, 216, 177),  # apricot
    (0, 0, 117),  # navy
    (255, 250, 200),  # beige
    (169, 169, 169),  # grey
)


def distinct_palette(num_classes: int) -> list[Colour]:
    """Colours for up to 256 classes, those of neighbouring labels far apart; none is black.

    The first 20 are easy to tell apart (Trubetskoy, "20 simple, distinct colors", in another
    order). In the others, each bit triple of the number sets the leading bits of red, green and
    blue, as in the Pascal VOC colour map.
    """
    rest = (_spread_bits(i + 1) for i in range(len(_FIRST), num_classes))
    return [*_FIRST[:num_classes], *rest]


def _spread_bits(number: int) -> Colour:
    colour = [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (number >> channel & 1) << bit
        number >>= 3
    return colour[0], colour[1], colour[2]
