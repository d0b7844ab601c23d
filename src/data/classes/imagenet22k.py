"""Label sets of ImageNet-22k by WordNet synset, and the translation between them.

The fall-2011 release has 21,841 classes, sorted by synset, which is the order of the published
weights (``22k_class_to_idx.json`` of OpenGVLab/InternImage, and timm's ``ImageNetInfo``). The list
of the 19,167 classes of the winter-2021 release is not public without the data: it is read from a
file, which ``python -m src prepare imagenet22k`` writes from the class folders.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from src.data.classes.class_names import imagenet_synsets
from src.errors import UserError

FALL_2011 = "fall-2011"
IMAGENET_1K = "imagenet-1k"
_SYNSET = re.compile(r"n\d{8}")
_ACCEPTED = (
    f'"{FALL_2011}", "{IMAGENET_1K}", a text file with one synset per line in label order, or a'
    " json of labels by synset (22k_class_to_idx.json)"
)


def fall_2011_synsets() -> list[str]:
    """The 21,841 synsets of the fall-2011 release in label order."""
    from timm.data.imagenet_info import ImageNetInfo  # importing timm takes seconds

    return [str(name) for name in ImageNetInfo("imagenet-22k").label_names()]


def label_set(name: str | Path) -> list[str]:
    """Synsets of a label set in label order.

    Args:
        name: ``"fall-2011"``, ``"imagenet-1k"``, a text file with one synset per line, or a json of
            labels by synset.

    Raises:
        UserError: If there is no such set, or the file is not a list of synsets.
    """
    if name == FALL_2011:
        return fall_2011_synsets()
    if name == IMAGENET_1K:
        return imagenet_synsets()
    path = Path(name)
    if not path.is_file():
        hint = (
            " The classes of the winter-2021 release are the class folders of the data; write the"
            " file with `python -m src prepare imagenet22k`."
            if "winter" in str(name)
            else ""
        )
        raise UserError(f"There is no label set '{name}'; expected {_ACCEPTED}.{hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The label set {path} is not UTF-8 text; expected {_ACCEPTED}.") from error
    synsets = _from_json(path, text) if path.suffix == ".json" else text.split()
    wrong = next((synset for synset in synsets if not _SYNSET.fullmatch(synset)), None)
    if wrong is not None or not synsets:
        raise UserError(
            f"The label set {path} holds {'nothing' if wrong is None else repr(wrong[:40])};"
            " expected synsets such as n01440764."
        )
    twice = next((synset for synset, count in Counter(synsets).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"The label set {path} holds {twice} more than once.")
    return synsets


def map_labels(source: Sequence[str], target: Sequence[str]) -> list[int]:
    """Label in one set of each class of another; -1 for a class that it lacks.

    Args:
        source: Synsets of the labels to translate, in label order.
        target: Synsets of the labels that they become.
    """
    label_of = {synset: label for label, synset in enumerate(target)}
    return [label_of.get(synset, -1) for synset in source]


def readable_synsets(synsets: Sequence[str]) -> list[str]:
    """First lemma of each synset, with the synset in brackets where several have the same one."""
    from timm.data.imagenet_info import ImageNetInfo  # importing timm takes seconds

    infos = [ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k")]
    known = [set(info.label_names()) for info in infos]
    lemmas = []
    for synset in synsets:
        info = next((i for i, names in zip(infos, known, strict=True) if synset in names), None)
        text = synset if info is None else info.label_name_to_description(synset)
        lemmas.append(text.split(",")[0].strip())
    count = Counter(lemmas)
    return [
        f"{lemma} ({synset})" if count[lemma] > 1 else lemma
        for lemma, synset in zip(lemmas, synsets, strict=True)
    ]


def _from_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a json file: {str(error)[:120]}.") from error
    is_map = isinstance(content, dict) and all(type(label) is int for label in content.values())
    if not is_map or sorted(content.values()) != list(range(len(content))):
        raise UserError(f"{path} must hold the label of each synset, counted from 0 without gaps.")
    return sorted(content, key=content.__getitem__)
