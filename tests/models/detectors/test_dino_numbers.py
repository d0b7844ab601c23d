"""DINO and CB-DINO compute what the official code computes.

The stored arrays are float64 runs of the official code (some rounded to float32). Tolerances of
float32 follow from how far the official float32 run itself is off.
"""

import json
import re
from dataclasses import dataclass
from functools import partial, reduce
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from src.losses.box_set import match, pixel_boxes, relative_boxes
from src.models import CBDINO, DINO, CBInternImageBackbone, InternImageBackbone
from src.models.detectors.denoising import Noise
from src.models.detectors.padding import find_padding
from src.models.official_names import official_names
from src.models.weights import load_official
from tests.models.conftest import name_noise, name_weight

FIXTURES = Path(__file__).parents[2] / "fixtures"
SIZES = [(92, 120), (80, 128)]
ORIGINAL_SIZES = [(115, 150), (100, 160)]
PADDED = (96, 128)
SMALL = {
    "channels": 64,
    "num_queries": 30,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "hidden_channels": 128,
    "denoising_queries": 12,
    "max_detections": 50,
}
STAGES = {"depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8), "out_indices": (1, 2, 3)}
TINY = partial(InternImageBackbone, channels=16, layer_scale=1.0, **STAGES)
TINY_H = partial(
    InternImageBackbone,
    channels=32,
    res_post_norm=True,
    dw_kernel_size=5,
    level2_post_norm_block_ids=(1,),
    center_feature_scale=True,
    **STAGES,
)
NETWORKS = {
    "dino_t": partial(DINO, backbone=TINY, **SMALL),
    "cbdino_h": partial(CBDINO, backbone=partial(CBInternImageBackbone, TINY_H), **SMALL),
}


class FixedNoise(Noise):
    """Draws that depend on nothing but names."""

    def __init__(self, name):
        self.name = name

    def _read(self, kind, like):
        noise = name_noise(f"rand:{self.name}:{kind}", like.numel())
        return torch.from_numpy(noise).view(like.shape)

    def chance(self, like):
        return (self._read("dn_p", like) + 1) / 2

    def labels(self, count, num_classes, device):
        noise = self._read("dn_newlabel", torch.empty(count))
        return ((noise + 1) / 2 * num_classes).floor().long()

    def signs(self, like):
        return (self._read("dn_sign", like) >= 0).to(like) * 2 - 1

    def parts(self, like):
        return ((self._read("dn_part", like) + 1) / 2).to(like)


@dataclass
class OfficialRun:
    """One official run: our network with its weights, the inputs, and what came out."""

    name: str
    network: torch.nn.Module
    image: torch.Tensor
    targets: list[dict]
    arrays: dict[str, np.ndarray]
    param_order: list[str]


def read_run(name, dtype):
    spec = json.loads((FIXTURES / f"{name}.json").read_text())
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    network = NETWORKS[name]()
    report = load_official(
        network, {key: name_weight(key, shape) for key, shape, _ in spec["state_dict"]}
    )
    assert not report.fresh
    assert not report.unused
    network.bbox_head.denoising.noise = FixedNoise(name)
    noise = name_noise(f"input:{name}:image", 2 * 3 * 96 * 128).reshape(2, 3, *PADDED)
    image = torch.from_numpy((2 * noise).astype(np.float32))
    for picture, (height, width) in zip(image, SIZES, strict=True):
        picture[:, height:] = 0
        picture[:, :, width:] = 0
    targets = [
        {
            "boxes": torch.from_numpy(arrays[f"gt_boxes{i}"]),
            "labels": torch.from_numpy(arrays[f"gt_labels{i}"]),
        }
        for i in range(2)
    ]
    return OfficialRun(
        name,
        network.to(dtype).eval(),
        image.to(dtype),
        targets,
        arrays,
        spec["param_order"],
    )


both_runs = pytest.mark.parametrize("name", list(NETWORKS))
both_types = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def read():
    """Read a run, with the maps of its backbone; kept for the tests of this file."""
    kept = {}

    def run(name, dtype):
        if (name, dtype) not in kept:
            kept[name, dtype] = read_run(name, dtype)
        return kept[name, dtype]

    return run


def assert_equal(ours, stored, fp32_atol):
    """Compare with a stored array; float64 is limited by arrays stored as float32."""
    stored = torch.as_tensor(np.asarray(stored))
    wide = 1e-9 if stored.dtype == torch.float64 else 3e-7
    atol = wide if ours.dtype == torch.float64 else fp32_atol
    torch.testing.assert_close(ours.detach().double(), stored.double(), atol=atol, rtol=0)


def assert_map_equal(ours, arrays, name, fp32_atol):
    assert_equal(ours[:, ::8, ::2, ::2], arrays[f"{name}_sub"], fp32_atol)
    length = float(ours.double().norm())
    assert length == pytest.approx(arrays[f"{name}_sum_norm"][1], rel=1e-6)


@both_types
@both_runs
@torch.no_grad()
def test_maps_and_memory(read, name, dtype):
    run = read(name, dtype)
    backbone = run.network.backbone(run.image)
    names = {"dino_t": ["backbone"], "cbdino_h": ["backbone_cb0_", "backbone_cb1_"]}[name]
    for prefix, maps in zip(names, [backbone] if name == "dino_t" else backbone, strict=True):
        for i, level in enumerate(maps):
            assert_map_equal(level, run.arrays, f"{prefix}{i}", 5e-5)
    maps = run.network.neck(backbone if name == "dino_t" else backbone[1])
    for i, level in enumerate(maps):
        assert_map_equal(level, run.arrays, f"neck{i}", 5e-5)
    padding = find_padding(PADDED, SIZES, maps)
    head = run.network.bbox_head
    memory = head.transformer.encode(maps, padding)
    assert_equal(memory[:, ::4, ::4], run.arrays["memory_sub"], 5e-5)
    assert float(memory.double().norm()) == pytest.approx(
        run.arrays["memory_sum_norm"][1], rel=1e-6
    )
    everything = head.transformer
    everything.num_queries, before = memory.shape[1], everything.num_queries
    proposals = everything.propose(memory, padding, head.cls_branches[-1], head.reg_branches[-1])
    everything.num_queries = before
    best = torch.zeros_like(proposals.logits[..., 0])
    best.scatter_(1, proposals.index, proposals.logits.amax(-1))
    assert_equal(best, run.arrays["enc_max_cls"], 5e-5)
    assert proposals.index[:, :before].tolist() == run.arrays["topk_indices"].tolist()


@both_types
@both_runs
@torch.no_grad()
def test_predictions_of_every_layer_and_detections(read, name, dtype):
    run = read(name, dtype)
    network, arrays = run.network, run.arrays
    maps = network.neck(network.maps_for_detection(run.image))
    predictions = network.bbox_head(maps, PADDED, SIZES)
    assert_equal(predictions.encoder_logits, arrays["topk_score"], 5e-5)
    assert_equal(predictions.encoder_boxes, arrays["topk_anchor"], 5e-6)
    for i, (logits, boxes) in enumerate(zip(predictions.logits, predictions.boxes, strict=True)):
        assert_equal(logits, arrays[f"cls{i}"], 5e-5)
        assert_equal(boxes, arrays[f"box{i}"], 5e-6)
    for i, found in enumerate(network(run.image, SIZES, ORIGINAL_SIZES)):
        stored = arrays[f"det_boxes{i}"]
        assert found.masks is None
        assert found.labels.tolist() == arrays[f"det_labels{i}"].tolist()
        assert_equal(found.boxes, stored[:, :4], 1e-3)
        assert_equal(found.scores, stored[:, 4], 5e-6)


@both_types
@both_runs
def test_losses_and_gradients(name, dtype):
    run = read_run(name, dtype)
    network, arrays = run.network, run.arrays
    losses = train(run)
    torch.stack(list(losses.values())).sum().backward()
    stored = stored_losses(arrays)
    assert losses.keys() == stored.keys()
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    for key, value in losses.items():
        assert value.item() == pytest.approx(stored[key], rel=rtol), key
    names = official_names(network)
    gradients = {names[key]: p.grad.double() for key, p in network.named_parameters()}
    for key in gradients:
        if re.search(r"cb_modules\.1\.gamma\d$", key):  # officially of half precision; ours is not
            gradients[key] = gradients[key].half().double()
    ours = np.array([float(gradients[key].norm()) for key in run.param_order])
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    wrong = np.abs(ours - arrays["grad_norms"]) > rtol * arrays["grad_norms"]
    assert not wrong.any(), [run.param_order[i] for i in wrong.nonzero()[0]]


def train(run):
    """Losses of the pictures that the official run had."""
    used = slice(0, 2 if run.name == "dino_t" else 1)  # the official CB-DINO takes one picture
    return run.network(run.image[used], SIZES[used], targets=run.targets[used])


def stored_losses(arrays):
    return {
        key.removeprefix("loss/"): float(a[0]) for key, a in arrays.items() if key[:5] == "loss/"
    }


@pytest.fixture
def matched(monkeypatch):
    """What every call of the matching saw and found."""
    calls = []

    def spy(logits, boxes, targets, sizes):
        pairs = match(logits, boxes, targets, sizes)
        calls.append((boxes.detach(), targets, sizes, pairs))
        return pairs

    monkeypatch.setattr("src.models.detectors.dino_head.match", spy)
    return calls


def box_losses_of_all_assignments(boxes, target, size):
    """Queries of the objects ``(A, G)`` and coordinate and overlap loss ``(A,)`` of each choice."""
    objects = target["boxes"].to(boxes)
    distance = torch.cdist(boxes, relative_boxes(objects, size), p=1)
    overlap = 1 - generalized_box_iou(pixel_boxes(boxes, size), objects)
    choices = torch.tensor(list(permutations(range(len(boxes)), len(objects))))
    column = torch.arange(len(objects))
    return choices, 5 * distance[choices, column].sum(1), 2 * overlap[choices, column].sum(1)


@both_runs
def test_only_our_assignments_give_the_official_losses(name, matched):
    run = read_run(name, torch.float64)
    stored = stored_losses(run.arrays)
    names = [key for key in train(run) if "bbox" in key and "dn_" not in key]
    assert len(names) == len(matched) == (5 if name == "dino_t" else 10)
    for key, (boxes, targets, sizes, pairs) in zip(names, matched, strict=True):
        pictures = zip(boxes, targets, sizes, strict=True)
        found = [box_losses_of_all_assignments(*picture) for picture in pictures]
        number = sum(len(target["labels"]) for target in targets) + torch.finfo(torch.float32).eps
        number /= 0.5 if key.endswith("0_w0.5") else 1
        distance, overlap = (
            reduce(lambda a, b: (a[:, None] + b).flatten(), [losses[i] for losses in found])
            for i in (1, 2)
        )
        is_official = (distance / number - stored[key]).abs() < 1e-8
        is_official &= (overlap / number - stored[key.replace("bbox", "iou")]).abs() < 1e-8
        (official,) = is_official.nonzero()
        counts = [len(choices) for choices, _, _ in found]
        for i, row in enumerate(np.unravel_index(int(official), counts)):
            query, thing = pairs[i]
            assert query.tolist() == found[i][0][row][thing].tolist()


@both_runs
def test_assignments_of_float32_are_those_of_float64(name, matched):
    for dtype in (torch.float32, torch.float64):
        train(read_run(name, dtype))
    narrow, wide = matched[: len(matched) // 2], matched[len(matched) // 2 :]
    for (*_, ours), (*_, exact) in zip(narrow, wide, strict=True):
        for (query, thing), (exact_query, exact_thing) in zip(ours, exact, strict=True):
            assert query.tolist() == exact_query.tolist()
            assert thing.tolist() == exact_thing.tolist()
