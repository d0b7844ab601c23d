"""Differences between exported files and PyTorch, and their limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

TOLERANCE = 1e-4
"""Largest difference of an output that rounding explains."""
LIMITS = {
    "boxes": 1e-2,
    "label_map": 1e-3,
    "masks": 1e-2,
    "unmatched": 1e-2,
    "prepared": 2e-2,
    "proposals": 1.0,
}
"""Limits of results that are not probabilities: pixels, fractions that ties explain, and about one
grey level of the prepared image, because resizes round to whole grey values. Boxes of DINO differ
by 1.5e-3 pixels between float32 and float64 in PyTorch alone, on images of 640 pixels. Any share of
its proposals may differ, because the scores that they are chosen by have a limit."""

_MEANINGS = {
    "prepared": "mean difference of the resized, normalised image from that of predict; not part"
    " of the other rows",
    "proposals": "share of the queries that start from another pixel; PyTorch is given those of"
    " the file",
    "proposal_scores": "difference of the scores of these pixels in PyTorch; 0 if all are the same",
    "boxes": "in pixels of the image",
    "unmatched": "share of detections without a counterpart",
}


class Differences:
    """Largest differences by file and output."""

    def __init__(self) -> None:
        self._worst: dict[tuple[str, str], float] = {}
        self._units: dict[tuple[str, str], str] = {}

    def add(
        self, path: Path, found: Mapping[str, float], units: Mapping[str, str] | None = None
    ) -> None:
        """Add the differences of one image.

        Args:
            path: The file.
            found: Difference by output.
            units: Outputs whose differences are fractions that never fail, with their unit.
        """
        for name, value in found.items():
            key = (path.name, name)
            self._worst[key] = larger(self._worst.get(key, 0.0), value)
            if units and name in units:
                self._units[key] = f" of the {units[name]}"

    def is_above(self, key: tuple[str, str]) -> bool:
        """Whether an output of a file differs by more than rounding explains."""
        if ".fp16." in key[0] or ".int8." in key[0]:
            return not math.isfinite(self._worst[key])
        if key in self._units:
            return False
        return not self._worst[key] <= LIMITS.get(key[1], TOLERANCE)

    @property
    def passed(self) -> bool:
        """Whether no output is above its limit."""
        return bool(self._worst) and not any(map(self.is_above, self._worst))

    def above(self) -> list[str]:
        """Outputs above their limits, each with its file and difference."""
        return [
            f"{name} of {file} ({value:.1e})"
            for (file, name), value in self._worst.items()
            if self.is_above((file, name))
        ]

    def table(self) -> str:
        """One line per file and output."""
        return "\n".join(
            f"  {key[0]:<18} {key[1]:<15} {value:.1e}{self._units.get(key, '')}"
            f"{'  ABOVE' if self.is_above(key) else ''}"
            for key, value in self._worst.items()
        )

    def legend(self) -> list[str]:
        """One line for each output whose name does not say what it is."""
        found = {name for _, name in self._worst}
        return [f"  {name}: {text}" for name, text in _MEANINGS.items() if name in found]


def larger(a: float, b: float) -> float:
    """The larger one of two differences; NaN, which ``max`` may drop, if one of them is NaN."""
    return a if math.isnan(a) or b <= a else b
