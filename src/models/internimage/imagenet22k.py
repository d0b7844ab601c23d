"""The 1000 classes of ImageNet-1k among the 21841 of ImageNet-22k.

Source: the public synset tables in timm, with the one exception of the official loader.
"""

from __future__ import annotations

from functools import cache


@cache
def indices_22k_to_1k() -> tuple[int, ...]:
    """Rows of a 21841-class head that belong to the 1000 classes, in their order.

    A class of ImageNet-1k is found in ImageNet-22k by its WordNet synset. One has no class of its
    own there: the teddy bear (850, n04399382) takes the row of the teapot (n04398044), as
    in the official code.
    """
    from timm.data.imagenet_info import ImageNetInfo

    row = {synset: i for i, synset in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    renamed = {"n04399382": "n04398044"}
    names = ImageNetInfo("imagenet-1k").label_names()
    return tuple(row[renamed.get(synset, synset)] for synset in names)
