"""Interface of every detector: losses with targets, detections without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from src.errors import UserError
from src.models.graphs import Graph
from src.types import Detections, DetectionTarget, Size

Kind = Literal["bbox", "segm"]


class TrainingOutput(NamedTuple):
    """What a detector returns in training.

    Attributes:
        losses: Losses by name, scalars or one value per level; training minimises their sum.
        metrics: Further values to log, scalars without gradient.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Detector(nn.Module):
    """Base of all detectors.

    A subclass defines `extract_features`, `losses` and `detect`; `export_graphs`, with
    `export_inputs` if its graphs take more than images, if it can be exported; and `dense_outputs`
    if the memory planner shall see more than the feature maps.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("bbox", "segm")
    """What a detection has: a box, and a mask."""
    not_in_dense_outputs: ClassVar[str] = "head"
    """Part whose activations `dense_outputs` leaves out; empty if there is none."""
    depths: tuple[int, ...]
    """Blocks per stage of the backbone."""

    def forward(
        self,
        image: Tensor,
        sizes: Sequence[Size],
        original_sizes: Sequence[Size] | None = None,
        targets: Sequence[DetectionTarget] | None = None,
    ) -> TrainingOutput | list[Detections]:
        """Losses if there are targets, else detections.

        Args:
            image: Normalised images, zero-padded at the right and at the bottom to one size, a
                multiple of 32, ``(N, 3, H, W)``.
            sizes: Height and width of each image without padding.
            original_sizes: Height and width that detections refer to; default ``sizes``.
            targets: Ground truth of each image.

        Returns:
            Losses and metrics, or the detections of each image.
        """
        if targets is not None:
            return self.losses(image, sizes, targets)
        return self.detect(image, sizes, original_sizes)

    def extract_features(self, image: Tensor) -> list[Tensor]:
        """Feature maps that the head works on, ``(N, C, H_i, W_i)``, finest first."""
        raise TypeError(f"{type(self).__name__} must define extract_features()")

    def losses(
        self, image: Tensor, sizes: Sequence[Size], targets: Sequence[DetectionTarget]
    ) -> TrainingOutput:
        """Losses and metrics of a batch; see `forward`."""
        raise TypeError(f"{type(self).__name__} must define losses()")

    def detect(
        self, image: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Detections of each image; see `forward`."""
        raise TypeError(f"{type(self).__name__} must define detect()")

    def dense_outputs(self, image: Tensor) -> list[Tensor]:
        """Outputs whose shapes depend only on the shape of the images, for the memory planner.

        The planner runs a step on the meta device, where data-dependent selection (NMS, top-k) is
        not possible.
        """
        return self.extract_features(image)

    def export_graphs(self) -> list[Graph]:
        """The files that this detector is exported to, see `src.models.graphs`."""
        raise UserError(
            f"{type(self).__name__} cannot be exported: it does not define export_graphs()."
        )

    def export_inputs(self, image: Tensor, sizes: Sequence[Size]) -> Iterator[dict[str, Tensor]]:
        """Inputs of the graphs by name for prepared images, on which files are compared.

        Args:
            image: As in `forward`.
            sizes: As in `forward`.

        Yields:
            Inputs; a graph is run on those that have all of its names.
        """
        yield {"image": image}
