"""Generated colours for the classes of a dataset that has no palette of its own."""

from __future__ import annotations

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def distinct_palette(num_classes: int) -> list[Colour]:
    """Colours for up to 256 classes, those of neighbouring labels far apart; none is black.

    Each bit triple of the number sets the leading bits of red, green and blue, as in the Pascal VOC
    colour map, which starts with black for the background; here it starts with its second entry.
    """
    return [_spread_bits(i + 1) for i in range(num_classes)]


def _spread_bits(number: int) -> Colour:
    colour = [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (number >> channel & 1) << bit
        number >>= 3
    return colour[0], colour[1], colour[2]
