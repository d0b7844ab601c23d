"""The SegFormer head and the Mask2Former of Cityscapes give the official numbers.

Bounds: see ``tests/official.py``.
"""

from functools import cache, partial

import pytest
import torch

from src.losses.segmentation import SegmentationLoss
from src.models import InternImageBackbone, Mask2Former, Mask2FormerHead, SegFormerHead
from src.models.segmentation import Segmentor, SlidingWindow, image_probabilities, slide_logits
from src.models.weights import load_official, to_official
from src.models.weights.names import official_names
from tests.models.conftest import load_run
from tests.models.segmentation import test_flash_segmentation_numbers as flash
from tests.models.segmentation import test_upernet_numbers as upernet
from tests.models.steps import run_in_steps
from tests.official import check_choice

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
BACKBONES = {
    "segformer_l": {"layer_scale": 1.0, "post_norm": True, "offset_scale": 2.0},
    "mask2former_h_cityscapes": {
        "res_post_norm": True,
        "dw_kernel_size": 5,
        "center_feature_scale": True,
    },
}
NETWORKS = {
    # 150 outputs for the 19 classes, as in the official files.
    "segformer_l": partial(
        Segmentor, 19, decode_head=SegFormerHead, auxiliary_head=None, num_outputs=150
    ),
    "mask2former_h_cityscapes": partial(
        Mask2Former,
        19,
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
WINDOW = SlidingWindow(crop_size=(64, 64), stride=(32, 32))


@cache
def read(name, dtype):
    run = load_run(name)
    backbone = partial(InternImageBackbone, **BACKBONES[name] | run.spec["backbone_overrides"])
    network = NETWORKS[name](backbone=backbone)
    report = load_official(network, run.weights())
    assert not report.fresh
    assert not report.unused
    return run, network.to(dtype).eval()


@DTYPES
@torch.no_grad()
def test_segformer(dtype):
    run, network = read("segformer_l", dtype)
    features = network.backbone(run.input("image", dtype))
    run.numbers.check(features[0][:, ::4], "feat0")
    for i in (1, 2, 3):
        run.numbers.check(features[i], f"feat{i}")
    for i, value in enumerate(features):
        projected = network.decode_head.convs[i](value)
        run.numbers.check(projected[:, ::32], f"lateral{i}_sub")
        run.numbers.check_summary(projected, f"lateral{i}", like=f"lateral{i}_sub")
    logits = network.decode_head(features)
    run.numbers.check(logits[:, ::5], "logits_sub")
    run.numbers.check_summary(logits, "logits", like="logits_sub")


@DTYPES
@torch.no_grad()
def test_segformer_probabilities(dtype):
    run, network = read("segformer_l", dtype)
    views, size = [run.input("image", dtype)], (75, 110)
    probability = image_probabilities(network, views, size)
    run.numbers.check(probability[:, ::10, ::4, ::4], "whole_prob_sub")
    run.numbers.check_summary(probability, "whole_prob", like="whole_prob_sub")
    bound = run.numbers.bound("whole_prob_sub")
    check_choice(probability, run.arrays["whole_argmax"], bound)
    cropped = image_probabilities(network, views, size, content_size=(60, 82))
    check_choice(cropped, run.arrays["whole_crop_argmax"], bound)


@DTYPES
def test_segformer_loss_and_gradients(dtype):
    run, network = read("segformer_l", dtype)
    exact = read("segformer_l", torch.float64)[1]
    label = run.arrays["label"][:, 0].long()
    assert (label == 255).any()
    outputs = []

    def losses(network):
        outputs.append(network(run.input("image", next(network.parameters()).dtype)))
        return SegmentationLoss()(outputs[-1], label)

    network.zero_grad()
    found = run_in_steps(losses, network, exact, run.numbers.forward_share)
    accuracy = upernet.accuracy(outputs[-1]["out"], label)
    named = {"decode.loss_ce": found["loss_decode"], "decode.acc_seg": accuracy}
    run.numbers.check_losses(named, "loss/")
    found["loss_decode"].backward()
    names = official_names(network)
    gradients = {names[key]: p.grad for key, p in network.named_parameters()}
    run.numbers.check_gradients(gradients)
    run.numbers.check_gradient_norms(gradients, run.spec["param_order"])


def test_official_names_out():
    run, network = read("segformer_l", torch.float32)
    official = to_official(network)
    assert {name: list(value.shape) for name, value in official.items()} == {
        name: shape for name, shape, _ in run.spec["state_dict"]
    }


@DTYPES
def test_mask2former(dtype):
    # Which pixels a query attends to hangs on the sign of mask logits.
    run, network = read("mask2former_h_cityscapes", dtype)
    exact = read("mask2former_h_cityscapes", torch.float64)[1]
    check = partial(flash.check_head, run, semantic=4)
    run_in_steps(check, network, exact, run.numbers.forward_share)


@DTYPES
def test_mask2former_in_windows(dtype):
    run, network = read("mask2former_h_cityscapes", dtype)
    exact = read("mask2former_h_cityscapes", torch.float64)[1]
    run_in_steps(partial(check_windows, run), network, exact, run.numbers.forward_share)


@torch.no_grad()
def check_windows(run, network):
    image = run.input("image", next(network.parameters()).dtype)
    scores = slide_logits(network, image, WINDOW)
    run.numbers.check(scores[:, ::2, ::4, ::4], "slide_map_sub")
    run.numbers.check_summary(scores, "slide_map", like="slide_map_sub")
    probability = image_probabilities(network, [image], (83, 117), window=WINDOW)
    run.numbers.check(probability[:, ::2, ::4, ::4], "prob_sub")
    check_choice(probability, run.arrays["argmax"], run.numbers.bound("prob_sub"))
