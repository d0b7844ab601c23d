"""Compare the results of an exported file with those of PyTorch on real images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from src import files
from src.export.files import read_onnx
from src.export.graphs import graphs_of
from src.export.packages import require
from src.export.results import NETWORK, PREPARED
from src.export.session import DoesNotRunError, session
from src.models.detection.detector import Detector
from src.models.detection.rcnn.postprocess import paste_masks
from src.models.graphs import ClassResult, LabelMapResult, QueryResult, RegionResult, Result
from src.models.segmentation.inference import image_probabilities
from src.models.segmentation.segmentor import Segmentor
from src.types import Detections, Size

_SAME_BOX = 1.0  # pixels
PROPOSALS, PROPOSAL_SCORES = "proposals", "proposal_scores"
"""Outputs of the graph of DINO: the pixels that its queries are initialised from."""
_CHOSEN = f"{NETWORK}{PROPOSALS}"


@dataclass(frozen=True)
class Example:
    """One image for a check.

    Attributes:
        pixels: The image, uint8 ``(H, W, 3)``.
        prepared: The image as the recipe prepares it, float32 ``(1, 3, h, w)``.
        size: Height and width of ``prepared`` without padding.
    """

    pixels: Tensor
    prepared: Tensor
    size: Size

    @property
    def original(self) -> Size:
        """Height and width of the image."""
        return self.pixels.shape[0], self.pixels.shape[1]


class ResultFile:
    """An exported file, run on one image.

    Args:
        path: The file.
        inside: Whether preprocessing is part of it.
        threads: Threads of ONNX Runtime; default is its own choice.
    """

    def __init__(self, path: Path, inside: bool, threads: int | None = None) -> None:
        self.inside, self._path = inside, path
        self._session = _session_with({PREPARED: "FLOAT", _CHOSEN: "INT64"}, path, threads)
        self.names = [output.name for output in self._session.get_outputs()]
        self._inputs = {x.name for x in self._session.get_inputs()}

    def __call__(self, example: Example) -> dict[str, Tensor]:
        """Outputs by name, with the prepared image and the proposals of DINO.

        Raises:
            DoesNotRunError: If the file does not run on the image.
        """
        given = {"image": example.pixels[None] if self.inside else example.prepared}
        if "size" in self._inputs:
            given["size"] = torch.tensor(example.size)
        inputs = {name: value.numpy() for name, value in given.items()}
        try:
            outputs = self._session.run(self.names, inputs)
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            raise DoesNotRunError(self._path, [given["image"].shape], error) from None
        found = {k: torch.from_numpy(x) for k, x in zip(self.names, outputs, strict=True)}
        return found if self.inside else found | {PREPARED: example.prepared}


def _session_with(inner: dict[str, str], path: Path, threads: int | None) -> Any:
    """Session of a copy of a file in which those of these inner values that it has are outputs."""
    require("ONNX files", "onnx", "onnxruntime")
    import onnx

    model = read_onnx(path, weights=False)
    computed = {name for node in model.graph.node for name in node.output}
    found = computed & inner.keys()
    if not found:
        return session(path, threads)
    for name in found:
        kind = onnx.TensorProto.DataType.Value(inner[name])
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    copy = path.with_name(f".{path.name}.check")  # beside its weights
    try:
        files.write_bytes(copy, model.SerializeToString(), durable=False)
        return session(copy, threads)
    finally:
        copy.unlink(missing_ok=True)


@torch.no_grad()
def compare_result(
    network: nn.Module, result: Result, example: Example, found: dict[str, Tensor]
) -> dict[str, float]:
    """Largest differences between a file and PyTorch on the same prepared image.

    Args:
        network: The network in evaluation mode.
        result: What its first graph leads to.
        example: The image.
        found: Result of a `ResultFile`.

    Returns:
        ``prepared``: mean difference from the recipe's preprocessing in standard deviations
        (infinite if the sizes differ), and
        of a classifier ``probabilities``; of a segmentor ``scores`` and ``label_map``, the fraction
        of pixels that differ; of a detector ``boxes`` in pixels of the image, ``scores``, ``masks``
        (the fraction of the pixels of the boxes that differ) and ``unmatched``, the fraction of
        detections without a counterpart. Of DINO also what `_detect_from` returns.
    """
    image = found[PREPARED]
    differences = {PREPARED: _shift(image, example)}
    original = example.original if image is not example.prepared else example.size
    if isinstance(result, ClassResult):
        expected = network(image).softmax(dim=1)
        return differences | {"probabilities": _largest(expected, found["probabilities"])}
    if isinstance(result, LabelMapResult):
        probabilities = image_probabilities(network, [image], original)
        classes = cast(Segmentor, network).num_classes
        scores, labels = probabilities[:, :classes].max(dim=1)
        wrong = labels != found["label_map"]
        return differences | {
            "scores": _largest(scores, found["scores"]),
            "label_map": float(wrong.double().mean()),
        }
    assert isinstance(network, Detector)
    if isinstance(result, QueryResult):
        detections, choice = _detect_from(found[_CHOSEN], network, image, example.size, original)
        return differences | choice | compare_detections(detections, found, original, 0.0)
    (detections,) = network.detect(image, [example.size], [original])
    threshold = (result.mask_threshold if isinstance(result, RegionResult) else None) or 0.0
    return differences | compare_detections(detections, found, original, threshold)


def _detect_from(
    chosen: Tensor, network: Detector, image: Tensor, size: Size, original: Size
) -> tuple[Detections, dict[str, float]]:
    """Detections of DINO in PyTorch with the proposals of a file, and how these differ.

    The learned content of a query depends on the rank of its proposal. Two proposals whose scores
    differ by less than rounding may change places, and become other, equally good detections.

    Args:
        chosen: Proposals of the file, ``(1, Q)``.
        network: DINO or CB-DINO.
        image: The prepared image, ``(1, 3, H, W)``.
        size: Its height and width.
        original: Height and width that the boxes of the detections refer to.

    Returns:
        The detections; ``proposals``, the fraction of queries that PyTorch initialises from another
        pixel, and ``proposal_scores``, the largest difference, in PyTorch, between the scores of
        the two pixels.
    """
    (graph,) = graphs_of(network)
    own = dict(zip(graph.outputs, graph.module(image), strict=True))
    given = own
    if not torch.equal(own[PROPOSALS], chosen):
        given = dict(zip(graph.outputs, graph.module(image, chosen), strict=True))
    assert isinstance(graph.result, QueryResult)
    detections = graph.result.best_pairs(given["logits"][0], given["boxes"][0], size, original)
    return detections, {
        PROPOSALS: float((own[PROPOSALS] != chosen).double().mean()),
        PROPOSAL_SCORES: _largest(own[PROPOSAL_SCORES], given[PROPOSAL_SCORES]),
    }


def compare_detections(
    expected: Detections, found: dict[str, Tensor], size: Size, threshold: float
) -> dict[str, float]:
    """Match detections and compare the pairs; see `compare_result`.

    A pair has the same label and corners that are at most a pixel apart.

    Args:
        expected: Detections of PyTorch.
        found: ``boxes``, ``scores``, ``labels`` and optionally ``masks`` of a file.
        size: Height and width of the image.
        threshold: Minimum probability of the pixels of a mask.
    """
    pairs = match(expected, found)
    longest = max(len(expected.scores), len(found["scores"]))
    expected_index, found_index = pairs.unbind(dim=1)
    differences = {
        "unmatched": 1 - len(pairs) / longest if longest else 0.0,
        "boxes": _largest(expected.boxes[expected_index], found["boxes"][found_index]),
        "scores": _largest(expected.scores[expected_index], found["scores"][found_index]),
    }
    if expected.masks is not None and "masks" in found:
        masks = found["masks"][found_index]
        if masks.dtype != torch.bool:
            masks = paste_masks(masks, found["boxes"][found_index], size, threshold)
        wrong = (masks != expected.masks[expected_index]).sum()
        area = (
            (expected.boxes[expected_index, 2:] - expected.boxes[expected_index, :2])
            .prod(dim=1)
            .sum()
        )
        differences["masks"] = float(wrong) / max(float(area), 1.0)
    return differences


def match(expected: Detections, found: dict[str, Tensor]) -> Tensor:
    """Pairs of indices of equal detections, ``(P, 2)``, each used once."""
    distance = (expected.boxes[:, None] - found["boxes"][None]).abs().amax(dim=2)
    distance += (expected.scores[:, None] - found["scores"][None]).abs()
    distance = distance.masked_fill(expected.labels[:, None] != found["labels"][None], torch.inf)
    pairs, used = [], set[int]()
    for index in range(len(distance)):
        for other in distance[index].argsort()[:5].tolist():
            if other not in used and distance[index, other] <= _SAME_BOX:
                used.add(other)
                pairs.append((index, other))
                break
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def _shift(image: Tensor, example: Example) -> float:
    if image.shape != example.prepared.shape:
        return float("inf")
    height, width = example.size
    shift = image[..., :height, :width] - example.prepared[..., :height, :width]
    return float(shift.abs().mean())


def _largest(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max()) if expected.numel() else 0.0
