"""What exported files say about themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from src.project import PACKAGE

PACKAGES = (PACKAGE, "torch", "onnx")


@dataclass(frozen=True)
class Description:
    """Task, classes and preprocessing of a network.

    Attributes:
        task: ``classification``, ``detection`` or ``segmentation``.
        class_names: Names in label order.
        preprocessing: Arguments of the data module, see `src.hub.preprocessing_of`, with the
            ``palette`` of a segmentor.
        own_numbers: Number of each class in the user's label maps, if they do not count from 0.
    """

    task: str
    class_names: Sequence[str]
    preprocessing: Mapping[str, Any]
    own_numbers: Sequence[int] | None = None

    @property
    def upright(self) -> bool:
        """Whether images are turned as their EXIF block says; detectors always do it."""
        return self.task == "detection" or bool(self.preprocessing.get("upright"))

    @property
    def settings(self) -> dict[str, Any]:
        """The preprocessing without the colours of drawings; says whether images are turned."""
        kept = {name: value for name, value in self.preprocessing.items() if name != "palette"}
        return {**kept, "upright": self.upright}

    def metadata(self, inside: bool) -> dict[str, str]:
        """Metadata of an ONNX file; all but ``task`` are JSON.

        ``palette`` (red, green and blue of each class, 0 to 255) is that of a segmentor.

        Args:
            inside: Whether preprocessing is part of the file.
        """
        content = {
            "task": self.task,
            "names": json.dumps(list(self.class_names), ensure_ascii=False),
            "preprocessing": json.dumps({**self.settings, "inside": inside}),
            "versions": json.dumps({name: _version(name) for name in PACKAGES}),
        }
        if self.task == "segmentation":
            content["palette"] = json.dumps(self.preprocessing["palette"])
        return content


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
