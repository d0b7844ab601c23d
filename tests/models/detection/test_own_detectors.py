"""Detectors of one's own: what a subclass fills in, and what it gets for it."""

import pytest
import torch
from torch import nn

from src.export.compare_graphs import compare_graph, runner
from src.export.differences import TOLERANCE
from src.export.files import trace, write_program
from src.export.graphs import graphs_of
from src.models.detection import DetectionTransformer, Detector, SetPredictionHead
from src.models.graphs import free_sides, image_graph
from src.tasks import DetectionTask
from src.types import Detections

SIZES = [(64, 96), (60, 70)]
TARGETS = [
    {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]


class OneBoxHead(SetPredictionHead):
    """One query, whose box is the whole image."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(4, num_classes)

    def forward(self, features, image_size, sizes, targets=None):
        return self.fc(features[0].mean(dim=(2, 3)))

    def losses(self, predictions, targets, sizes):
        present = torch.stack([t["labels"].bincount(minlength=3).clamp(max=1) for t in targets])
        loss = nn.functional.binary_cross_entropy_with_logits(predictions, present.float())
        return {"cls": loss}

    def detect(self, predictions, sizes, original_sizes):
        scores, labels = predictions.sigmoid().max(1, keepdim=True)
        boxes = [torch.tensor([[0.0, 0.0, width, height]]) for height, width in original_sizes]
        return [Detections(*found) for found in zip(boxes, scores, labels, strict=True)]


class OneBoxDetector(DetectionTransformer):
    def __init__(self, num_classes):
        backbone = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16))
        super().__init__(backbone, nn.Identity(), OneBoxHead(num_classes), depths=(1,))

    def neck_inputs(self, image):
        return [self.backbone(image)]

    def export_graphs(self):
        return [image_graph("model", ExportedLogits(self), {"logits": "scores"}, free_sides())]


class ExportedLogits(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network.bbox_head(self.network.extract_features(image), None, [])


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return OneBoxDetector(num_classes=3)


def test_a_detection_transformer_needs_its_parts_only(detector):
    image = torch.randn(2, 3, 64, 96)
    losses, metrics = detector(image, SIZES, targets=TARGETS)
    losses["cls"].backward()
    assert not metrics
    assert all(parameter.grad is not None for parameter in detector.parameters())
    found = detector.eval()(image, SIZES, [(128, 192), (60, 70)])
    assert [d.boxes.tolist() for d in found] == [[[0, 0, 192, 128]], [[0, 0, 70, 60]]]
    assert detector.dense_outputs(image)[0].shape == (2, 4, 4, 6)


def test_names_of_losses_are_free(detector, monkeypatch):
    """A training step adds up what is a loss, whatever its name is."""
    task = DetectionTask(3, lambda num_classes: detector)
    task.configure_model()
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
    batch = {"image": torch.randn(2, 3, 64, 96), "size": SIZES, "target": TARGETS}
    loss = task.training_step(batch, 0)
    assert logged == {"train/loss": loss, "train/cls": loss}


def test_its_graphs_are_exported(detector, tmp_path):
    (graph,) = graphs_of(detector)
    run = runner(write_program(graph, trace(graph), tmp_path))
    image = torch.randn(3, 3, 80, 64)
    assert compare_graph(graph, run, {"image": image})["logits"] < TOLERANCE


@pytest.mark.parametrize("method", ["extract_features", "losses", "detect"])
def test_a_missing_method_is_named(method):
    arguments = {"extract_features": [None], "losses": [None] * 3, "detect": [None] * 2}[method]
    with pytest.raises(TypeError, match=rf"Detector must define {method}\(\)"):
        getattr(Detector(), method)(*arguments)
