"""UPerNet and Mask2Former on FlashInternImage give the official numbers.

Bounds: see ``tests/official.py``.
"""

from functools import cache, partial

import pytest
import torch

from src.models import InternImageBackbone, Mask2Former, Mask2FormerHead
from src.models.segmentation import Segmentor, image_probabilities
from src.models.weights import load_official
from tests.models.conftest import FLASH, load_run
from tests.models.segmentation import test_upernet_numbers as upernet
from tests.models.steps import run_in_steps
from tests.official import check_choice

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
NETWORKS = {
    "upernet_t": Segmentor,
    "mask2former_t": partial(
        Mask2Former,
        decode_head=partial(
            Mask2FormerHead,
            channels=256,
            heads=8,
            num_queries=100,
            encoder_hidden=1024,
            decoder_hidden=2048,
        ),
    ),
}


@cache
def read(name, dtype):
    run = load_run(f"flash_{name}")
    backbone = partial(
        InternImageBackbone, layer_scale=1.0, **FLASH | run.spec["backbone_overrides"]
    )
    network = NETWORKS[name](150, backbone)
    report = load_official(network, run.weights())
    assert not report.fresh
    assert not report.unused
    return run, network.to(dtype).eval()


def check_features(run, features):
    for i, value in enumerate(features):
        run.numbers.check(value[:, ::4], f"feat{i}_sub")
        run.numbers.check_summary(value, f"feat{i}", like=f"feat{i}_sub")


@DTYPES
@torch.no_grad()
def test_upernet(dtype):
    run, network = read("upernet_t", dtype)
    image = run.input("image", dtype)
    features = network.backbone(image)
    check_features(run, features)
    for head, name in ((network.decode_head, "decode"), (network.auxiliary_head, "aux")):
        logits = head(features)
        run.numbers.check(logits[:, ::5], f"{name}_logits_sub")
        run.numbers.check_summary(logits, f"{name}_logits", like=f"{name}_logits_sub")
    probability = image_probabilities(network, [image], (75, 110))
    run.numbers.check(probability[:, ::10, ::4, ::4], "whole_prob_sub")
    bound = run.numbers.bound("whole_prob_sub")
    check_choice(probability, run.arrays["whole_argmax"], bound)


@DTYPES
def test_upernet_losses_and_gradients(dtype):
    run, network = read("upernet_t", dtype)
    upernet.check_training(run, network, read("upernet_t", torch.float64)[1])


@torch.no_grad()
def check_head(run, network, semantic=16):
    """Compare the pixel decoder, the first and last predictions, and every n-th score map."""
    features = network.backbone(run.input("image", next(network.parameters()).dtype))
    check_features(run, features)
    mask_features, memory = network.decode_head.pixel_decoder(features)
    predictions = network.decode_head.predict(features)
    assert len(predictions) == 10
    scores = network.decode_head(features)
    found = {"mask_features": (mask_features, mask_features[:, ::16, ::2, ::2])}
    found |= {f"memory{i}": (value, value[:, ::16]) for i, value in enumerate(memory)}
    found["semantic"] = scores, scores[:, ::semantic]
    for i in (0, 9):
        classes, masks = predictions[i]
        found[f"cls{i}"] = classes, classes[:, ::5]
        found[f"mask{i}"] = masks, masks[:, ::10, ::2, ::2]
    for name, (value, part) in found.items():
        run.numbers.check(part, f"{name}_sub")
        run.numbers.check_summary(value, name, like=f"{name}_sub")


@DTYPES
def test_mask2former(dtype):
    # Which pixels a query attends to hangs on the sign of mask logits.
    run, network = read("mask2former_t", dtype)
    exact = read("mask2former_t", torch.float64)[1]
    run_in_steps(partial(check_head, run), network, exact, run.numbers.forward_share)


@DTYPES
@torch.no_grad()
def test_mask2former_probabilities(dtype):
    run, network = read("mask2former_t", dtype)
    probability = image_probabilities(network, [run.input("image", dtype)], (75, 110))
    run.numbers.check(probability[:, ::10, ::4, ::4], "prob_sub")
    check_choice(probability, run.arrays["argmax"], run.numbers.bound("prob_sub"))
