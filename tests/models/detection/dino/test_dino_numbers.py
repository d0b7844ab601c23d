"""DINO and CB-DINO compute what the official code computes.

Bounds: see ``tests/official.py``.
"""

import json
import re
from dataclasses import dataclass
from functools import cache, partial, reduce
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from src.losses.box_set import hungarian_match, pixel_boxes, relative_boxes
from src.models import CBDINO, DINO, CBInternImageBackbone, InternImageBackbone
from src.models.detection.dino.denoising import Noise
from src.models.detection.dino.padding import find_padding
from src.models.weights import load_official
from src.models.weights.names import official_names
from tests.models.conftest import name_noise, name_weight
from tests.models.steps import run_in_steps
from tests.official import OfficialNumbers, close

FIXTURES = Path(__file__).parents[3] / "fixtures"
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
    numbers: OfficialNumbers
    param_order: list[str]

    @property
    def arrays(self):
        """Everything stored, by name."""
        return self.numbers.arrays


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
    for raw, (height, width) in zip(image, SIZES, strict=True):
        raw[:, height:] = 0
        raw[:, :, width:] = 0
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
        OfficialNumbers.read(spec, arrays),
        spec["param_order"],
    )


both_runs = pytest.mark.parametrize("name", list(NETWORKS))
both_types = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.float64, id="fp64", marks=pytest.mark.slow),
    ],
)


@pytest.fixture(scope="module")
def read():
    return cache(read_run)


def in_steps(compute, run, exact, share=None):
    """Result of a function of a run, given the values of another one."""
    return run_in_steps(
        lambda network: compute(run if network is run.network else exact),
        run.network,
        exact.network,
        share or run.numbers.forward_share,
    )


@torch.no_grad()
def check_forward(run):
    """Compare the feature maps and what the encoder makes of them."""
    backbone = run.network.backbone(run.image)
    names = {"dino_t": ["backbone"], "cbdino_h": ["backbone_cb0_", "backbone_cb1_"]}[run.name]
    for prefix, maps in zip(names, [backbone] if run.name == "dino_t" else backbone, strict=True):
        for i, level in enumerate(maps):
            check_map(run, level, f"{prefix}{i}")
    maps = run.network.neck(backbone if run.name == "dino_t" else backbone[1])
    for i, level in enumerate(maps):
        check_map(run, level, f"neck{i}")
    padding = find_padding(PADDED, SIZES, maps)
    head = run.network.bbox_head
    memory = head.transformer.encode(maps, padding)
    run.numbers.check(memory[:, ::4, ::4], "memory", "memory_sub")
    run.numbers.check_summary(memory, "memory")
    everything = head.transformer
    everything.num_queries, before = memory.shape[1], everything.num_queries
    proposals = everything.propose(memory, padding, head.cls_branches[-1], head.reg_branches[-1])
    everything.num_queries = before
    topk = run.arrays["topk_indices"]
    best = torch.zeros_like(proposals.logits[..., 0])
    best.scatter_(1, proposals.index, proposals.logits.amax(-1))
    run.numbers.check(best, "enc_max_cls")
    # The same pixels, or others whose scores rounding cannot tell from theirs.
    scores = run.arrays["enc_max_cls"]
    ours, official = (scores.gather(1, x) for x in (proposals.index[:, :before], topk))
    close(ours.to(memory), official, 2 * run.numbers.bound("enc_max_cls"), "topk_indices")


def check_map(run, level, name):
    run.numbers.check(level[:, ::8, ::2, ::2], name, f"{name}_sub")
    run.numbers.check_summary(level, name)


@both_types
@both_runs
def test_feature_maps_and_memory(read, name, dtype):
    check_forward(read(name, dtype))


@torch.no_grad()
def predict(run):
    """Predictions of every layer, and detections."""
    maps = run.network.extract_features(run.image)
    predictions = run.network.bbox_head(maps, PADDED, SIZES)
    return predictions, run.network(run.image, SIZES, ORIGINAL_SIZES)


@both_types
@both_runs
def test_predictions_of_every_layer_and_detections(read, name, dtype):
    run = read(name, dtype)
    numbers, arrays = run.numbers, run.arrays
    # Which pixels become queries, and the order of detections, hang on the order of scores.
    predictions, detections = in_steps(predict, run, read(name, torch.float64))
    numbers.check(predictions.encoder_logits, "topk_score")
    numbers.check(predictions.encoder_boxes, "topk_anchor")
    for i, (logits, boxes) in enumerate(zip(predictions.logits, predictions.boxes, strict=True)):
        numbers.check(logits, f"cls{i}")
        numbers.check(boxes, f"box{i}")
    last = f"cls{len(predictions.logits) - 1}"
    for i, found in enumerate(detections):
        stored = arrays[f"det_boxes{i}"]
        assert found.masks is None
        assert found.labels.tolist() == arrays[f"det_labels{i}"].tolist()
        close(found.boxes, stored[:, :4], numbers.bound(f"det_boxes{i}"), "boxes")
        # The slope of the sigmoid is at most a quarter.
        close(found.scores, stored[:, 4], numbers.bound(last) / 4, "scores")


def check_training(run, exact, share=None):
    """Compare losses and gradients, those of float32 given the values of a float64 run, ``exact``.

    ``share`` is how far a layer may be off, see `from_steps`.
    """
    run.network.zero_grad()
    losses = in_steps(train, run, exact, share)
    run.numbers.check_losses(losses, "loss/")
    torch.stack(list(losses.values())).sum().backward()
    names = official_names(run.network)
    gradients = {names[key]: p.grad for key, p in run.network.named_parameters()}
    for key in gradients:
        if re.search(r"cb_modules\.1\.gamma\d$", key):  # half precision in the official code only
            gradients[key] = gradients[key].half().to(gradients[key])
    run.numbers.check_gradient_norms(gradients, run.param_order)


@both_types
@both_runs
def test_losses_and_gradients(name, dtype):
    run = read_run(name, dtype)
    check_training(run, run if dtype == torch.float64 else read_run(name, torch.float64))


def train(run):
    """Losses of the images that the official run had."""
    used = slice(0, 2 if run.name == "dino_t" else 1)  # the official CB-DINO takes one raw
    return run.network(run.image[used], SIZES[used], targets=run.targets[used]).losses


def stored_losses(arrays):
    return {
        key.removeprefix("loss/"): float(a[0]) for key, a in arrays.items() if key[:5] == "loss/"
    }


@pytest.fixture
def matched(monkeypatch):
    """What every call of the matching saw and found."""
    calls = []

    def spy(logits, boxes, targets, sizes):
        pairs = hungarian_match(logits, boxes, targets, sizes)
        calls.append((boxes.detach(), targets, sizes, pairs))
        return pairs

    monkeypatch.setattr("src.models.detection.dino.head.hungarian_match", spy)
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
        images = zip(boxes, targets, sizes, strict=True)
        found = [box_losses_of_all_assignments(*raw) for raw in images]
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
    exact, run = (read_run(name, dtype) for dtype in (torch.float64, torch.float32))
    in_steps(train, run, exact)
    wide, narrow = matched[: len(matched) // 2], matched[len(matched) // 2 :]
    for (*_, ours), (*_, exact) in zip(narrow, wide, strict=True):
        for (query, thing), (exact_query, exact_thing) in zip(ours, exact, strict=True):
            assert query.tolist() == exact_query.tolist()
            assert thing.tolist() == exact_thing.tolist()
