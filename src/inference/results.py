"""Predictions for one image, with class names and drawings.

The values are those that ``python -m src predict`` writes, and `Prediction.plot` draws as it does::

    result.plot().save("prediction.png")  # a Pillow image; .show() opens it
    json.dumps(result.rows())  # also pandas.DataFrame(result.rows())
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.errors import UserError, counted
from src.inference.images import ImageSource, load_image
from src.metrics.coco_results import Result, decode_masks
from src.visualization import draw_classes, draw_instances, draw_label_map

_SHOWN = 5  # entries of the text of a prediction
_LISTED = 10  # class names in a message
_DRAWN = 0.3  # minimum score of drawn objects, as in `src.callbacks.DetectionWriter`
_ELSEWHERE = {
    "save": 'result.plot().save("prediction.png")',
    "show": "result.plot().show()",
    "to_dict": "result.rows()",
    **dict.fromkeys(("json", "to_json", "tojson"), "json.dumps(result.rows())"),
    **dict.fromkeys(("to_df", "pandas"), "pandas.DataFrame(result.rows())"),
}
"""What does the same as methods that results of other libraries have."""
_OF_OTHERS = {
    "Classification": dict.fromkeys(
        ("boxes", "mask", "masks", "label_map"), "it has labels, names and scores"
    )
    | {"probs": "use result.scores"},
    "Detection": {
        **dict.fromkeys(("mask", "label_map"), "use result.masks"),
        "probs": "use result.scores",
        "xyxy": "use result.boxes",
    },
    "Segmentation": {
        "boxes": "it has label_map, labels and names",
        "scores": "it has label_map, labels and names",
        "masks": "use result.label_map or result.mask(name)",
    },
}
"""By class, what stands for attributes that the other classes or other libraries have."""


@dataclass(repr=False, eq=False)  # compared by identity: tensors have no truth value
class Prediction(ABC):
    """Prediction for one image.

    Attributes:
        source: The image that was given: a file, or an image in memory.
        class_names: Class names of the model in label order.
        upright: Whether the EXIF orientation was applied to the image; drawings show it likewise.

    `plot` returns a Pillow image, which has ``save(path)`` and ``show()``; ``json.dumps`` and
    ``pandas.DataFrame`` take `rows`.
    """

    source: ImageSource
    class_names: Sequence[str]
    upright: bool

    if not TYPE_CHECKING:  # a type checker would accept any attribute

        def __getattr__(self, name: str) -> NoReturn:
            """Say what stands for an attribute of another class or library."""
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _ELSEWHERE:
                message += f"; use {_ELSEWHERE[name]}"
            elif advice := _OF_OTHERS.get(type(self).__name__, {}).get(name):
                message += f"; {advice}"
            raise AttributeError(message, name=name, obj=self)

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the predicted classes."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Plain Python values for ``json.dumps`` and ``pandas.DataFrame``; labels count from 0."""

    @abstractmethod
    def plot(self) -> Image.Image:
        """Draw the prediction; an RGB image with ``save(path)`` and ``show()``."""

    def image(self) -> Image.Image:
        """The image that `plot` draws on; files are read again."""
        return load_image(self.source, upright=self.upright)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


@dataclass(repr=False, eq=False)
class Classification(Prediction):
    """The most probable classes of an image, at most five, best first.

    Attributes:
        labels: Class indices, int64, shape ``(k,)``.
        scores: Probabilities, float32, shape ``(k,)``.
    """

    labels: Tensor
    scores: Tensor

    @property
    def names(self) -> list[str]:
        """Class names, best first."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def rows(self) -> list[dict[str, Any]]:
        """``label``, ``name`` and ``score`` of each class, best first."""
        return _rows(label=self.labels.tolist(), name=self.names, score=self.scores.tolist())

    def plot(self, *given: object, **unknown: object) -> Image.Image:
        """Image above a bar chart of the classes.

        Raises:
            UserError: If there are arguments, such as the minimum score of a detection.
        """
        _check_plot("a classification", "no arguments", given, unknown)
        return draw_classes(self.image(), self.names, self.scores.tolist())

    def __str__(self) -> str:
        pairs = zip(self.names, self.scores.tolist(), strict=True)
        return ", ".join(f"{name} {score:.1%}" for name, score in pairs)


@dataclass(repr=False, eq=False)
class Detection(Prediction):
    """Detected objects of an image, best first.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the image, float64, shape ``(D, 4)``.
        labels: Class indices, int64, shape ``(D,)``.
        names: Class name of each object.
        scores: Scores in [0, 1], float32, shape ``(D,)``.
        masks: Bool, shape ``(D, H, W)`` of the image; ``None`` for a detector without masks.
        size: Height and width of the image in pixels, with its EXIF orientation applied.
        source: The image that was given: a file, or an image in memory.
        class_names: Class names of the model in label order.
        upright: Whether the EXIF orientation was applied to the image; drawings show it likewise.
        has_masks: Whether the detector predicts masks.
        results: The objects as COCO results with class indices, of which the others are read; see
            `src.metrics.coco_results.to_results`.

    `above` keeps the better objects, and `plot` draws them. ``len`` is the number of objects, so a
    result without objects is false. ``result[0]``, ``result[:3]`` and
    ``result[result.labels == 1]`` are the detections of these objects, and a loop takes them one by
    one.
    """

    size: tuple[int, int]
    results: list[Result] = field(default_factory=list)
    has_masks: bool = False

    @property
    def labels(self) -> Tensor:
        """Class indices, int64, shape ``(D,)``."""
        return torch.tensor([r["category_id"] for r in self.results], dtype=torch.int64)

    @property
    def scores(self) -> Tensor:
        """Scores in [0, 1], float32, shape ``(D,)``."""
        return torch.tensor([r["score"] for r in self.results], dtype=torch.float32)

    @property
    def boxes(self) -> Tensor:
        """``x1, y1, x2, y2`` in pixels of the image, float64, shape ``(D, 4)``."""
        boxes = torch.tensor([r["bbox"] for r in self.results], dtype=torch.float64).reshape(-1, 4)
        return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)

    @property
    def masks(self) -> Tensor | None:
        """Bool, shape ``(D, H, W)`` of the image; ``None`` for a detector without masks."""
        if not self.has_masks:
            return None
        masks = [torch.from_numpy(mask) for mask in decode_masks(self.results)]
        return torch.stack(masks) if masks else torch.zeros((0, *self.size), dtype=torch.bool)

    @property
    def names(self) -> list[str]:
        """Class name of each object."""
        return [self.class_names[result["category_id"]] for result in self.results]

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, chosen: int | slice | Sequence[int] | Tensor) -> Detection:
        """The detections of some objects.

        Args:
            chosen: Index, slice, indices, or a bool mask of shape ``(D,)``.

        Raises:
            IndexError: If there is no such object, or the mask has another length.
        """
        indices = np.atleast_1d(np.arange(len(self))[chosen])
        return self._with([self.results[index] for index in indices.tolist()])

    def __iter__(self) -> Iterator[Detection]:
        return (self._with([result]) for result in self.results)

    def rows(self) -> list[dict[str, Any]]:
        """``label``, ``name``, ``score``, ``x1``, ``y1``, ``x2`` and ``y2`` of each object."""
        x1, y1, x2, y2 = self.boxes.T.tolist()
        labels, scores = self.labels.tolist(), self.scores.tolist()
        return _rows(label=labels, name=self.names, score=scores, x1=x1, y1=y1, x2=x2, y2=y2)

    def above(self, score: float) -> Detection:
        """The detections with at least this score.

        Args:
            score: Minimum score, from 0 to 1.

        Raises:
            UserError: If it is not a number from 0 to 1.
        """
        if _outside_0_to_1(score):
            raise UserError(f"above takes a score from 0 to 1, got {score!r}.")
        return self._with([result for result in self.results if result["score"] >= score])

    def _with(self, results: list[Result]) -> Detection:
        return dataclasses.replace(self, results=results)

    def plot(self, score: float = _DRAWN, **unknown: object) -> Image.Image:
        """Image with boxes, masks, class names and scores.

        If no object reaches the score, it is the image alone; ``print(result)`` says so.

        Args:
            score: Minimum score of drawn objects, from 0 to 1.
            unknown: Refused.

        Raises:
            UserError: If the score is not a number from 0 to 1, or there are other arguments.
        """
        _check_plot(
            "a detection", "one argument, score from 0 to 1", _outside_0_to_1(score), unknown
        )
        shown = self.above(score)
        return draw_instances(
            self.image(),
            boxes=[result["bbox"] for result in shown.results],
            masks=decode_masks(shown.results),
            names=shown.names,
            scores=[result["score"] for result in shown.results],
            classes=[result["category_id"] for result in shown.results],
        )

    def __str__(self) -> str:
        best = zip(self.names[:_SHOWN], self.scores[:_SHOWN].tolist(), strict=True)
        more = ", ..." if len(self.results) > _SHOWN else ""
        listed = ", ".join(f"{name} {score:.1%}" for name, score in best)
        return f"{counted(len(self), 'object')}{self._weak()}{': ' if listed else ''}{listed}{more}"

    def _weak(self) -> str:
        """How many objects `plot` draws, if it does not draw all."""
        drawn = len(self.above(_DRAWN))
        if drawn == len(self):
            return ""
        return f", {drawn or 'none'} above {_DRAWN:g}, the default of plot"


@dataclass(repr=False, eq=False)
class Segmentation(Prediction):
    """Class of every pixel of an image.

    Attributes:
        label_map: Class indices, uint8, shape ``(H, W)`` of the image.
        palette: Red, green and blue of each class, 0 to 255.
    """

    label_map: Tensor
    palette: Sequence[tuple[int, int, int]]

    @property
    def labels(self) -> Tensor:
        """Class indices that occur, largest area first, int64."""
        counts = torch.bincount(self.label_map.flatten().long(), minlength=len(self.class_names))
        order = torch.argsort(counts, descending=True, stable=True)
        return order[: int((counts > 0).sum())]

    @property
    def names(self) -> list[str]:
        """Names of the classes that occur, largest area first."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def rows(self) -> list[dict[str, Any]]:
        """``label``, ``name``, ``pixels`` and ``share`` of each class, largest first."""
        pixels = [int((self.label_map == label).sum()) for label in self.labels.tolist()]
        shares = [count / self.label_map.numel() for count in pixels]
        return _rows(label=self.labels.tolist(), name=self.names, pixels=pixels, share=shares)

    def mask(self, name: str | int) -> Tensor:
        """Pixels of one class, bool, shape ``(H, W)``.

        Args:
            name: A class name, or a class index as in `labels` and `rows`.

        Raises:
            UserError: If the model has no such class.
        """
        names = list(self.class_names)
        if name not in names and type(label := _plain(name)) is int:
            if not 0 <= label < len(names):
                raise UserError(
                    f"There is no class {label}. The classes are 0 ({names[0]}) to"
                    f" {len(names) - 1} ({names[-1]})."
                )
            return self.label_map == label
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            shown = ", ".join(names[:_LISTED]) + more
            raise UserError(f"There is no class {name!r}.{hint} The classes are {shown}.")
        return self.label_map == names.index(name)

    def plot(self, opacity: float = 0.55, **unknown: object) -> Image.Image:
        """Image with every pixel coloured by its class, and a legend.

        Args:
            opacity: Opacity of the class colours, from 0 to 1.
            unknown: Refused.

        Raises:
            UserError: If the opacity is not a number from 0 to 1, or there are other arguments.
        """
        _check_plot(
            "a segmentation", "one argument, opacity from 0 to 1", _outside_0_to_1(opacity), unknown
        )
        return draw_label_map(
            self.image(), self.label_map.numpy(), self.class_names, self.palette, opacity
        )

    def __str__(self) -> str:
        total = self.label_map.numel()
        shares = [(name, float(self.mask(name).sum()) / total) for name in self.names[:_SHOWN]]
        more = ", ..." if len(self.names) > _SHOWN else ""
        return ", ".join(f"{name} {_percent(share)}" for name, share in shares) + more


def _percent(share: float) -> str:
    """A share of an image; a class that occurs never has 0.0 %."""
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def _rows(**columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Columns of the same length as a list of rows."""
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _check_plot(
    what: str, takes: str, wrong: Sequence[object], unknown: Mapping[str, object]
) -> None:
    """Refuse arguments of `plot`.

    Args:
        what: The prediction.
        takes: What its `plot` takes.
        wrong: Arguments that are none of this.
        unknown: Further arguments by name.

    Raises:
        UserError: If there are any.
    """
    if wrong:
        advice = ""
        if isinstance(wrong[0], (str, Path)):
            advice = f" Save the image with plot().save({str(wrong[0])!r})."
        raise UserError(f"plot of {what} takes {takes}, got {wrong[0]!r}.{advice}")
    if unknown:
        raise UserError(f"plot of {what} takes {takes}, got {', '.join(unknown)}.")


def _plain(value: Any) -> Any:
    """The Python number of an array or a tensor of one value; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def _outside_0_to_1(value: Any) -> list[object]:
    """The value, if it is not a number from 0 to 1."""
    is_number = hasattr(value, "__float__") and np.ndim(value) == 0
    return [] if is_number and 0 <= float(value) <= 1 else [value]
