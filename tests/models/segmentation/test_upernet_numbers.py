"""UPerNet with official weights gives the official scores, probabilities, losses and gradients.

Bounds: see ``tests/official.py``.
"""

from functools import cache, partial

import pytest
import torch
from torch import nn

from src.losses.segmentation import SegmentationLoss
from src.models import InternImageBackbone
from src.models.segmentation import Segmentor, SlidingWindow, image_probabilities, slide_logits
from src.models.weights import load_official
from src.models.weights.names import official_names
from tests.models.conftest import load_run
from tests.models.steps import run_in_steps
from tests.official import check_choice

WINDOW = SlidingWindow(crop_size=(64, 64), stride=(42, 42))


def loaded(run, dtype):
    backbone = partial(InternImageBackbone, layer_scale=1.0, **run.spec["backbone_overrides"])
    network = Segmentor(150, backbone).to(dtype)
    load_official(network, run.weights())
    return network.eval()


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["fp64", "fp32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def run():
    return load_run("upernet_t")


@pytest.fixture(scope="module")
def network_of(run):
    return cache(partial(loaded, run))


@pytest.fixture(scope="module")
def network(network_of, dtype):
    return network_of(dtype)


@torch.no_grad()
def check_forward(run, network, dtype):
    """Compare the logits of both heads."""
    features = network.backbone(run.input("image", dtype))
    for i, value in enumerate(features):
        run.numbers.check_summary(value, f"feat{i}")
    decode = network.decode_head(features)
    run.numbers.check(decode[:, ::5], "decode_logits", "decode_logits_ch5")
    run.numbers.check_summary(decode, "decode_logits")
    run.numbers.check(network.auxiliary_head(features), "aux_logits")


def test_features_and_logits(run, network, dtype):
    check_forward(run, network, dtype)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("whole_prob", (75, 110), {}),
        ("whole_crop_prob", (75, 110), {"content_size": (60, 90)}),
    ],
)
@torch.no_grad()
def test_probabilities_of_whole_images(run, network, dtype, name, size, options):
    probability = image_probabilities(network, [run.input("image", dtype)], size, **options)
    check_scores(run, probability, name, 4)


@torch.no_grad()
def test_probabilities_of_a_sliding_window(run, network, dtype):
    views = [run.input("image_slide", dtype)]
    probability = image_probabilities(network, views, (120, 139), window=WINDOW, flipped=[True])
    check_scores(run, probability, "slide_prob_flip", 4)
    check_scores(run, probability.flip(-1), "slide_prob", 4)


def check_scores(run, scores, name, step):
    run.numbers.check(scores[:, ::10, ::step, ::step], name, f"{name}_sub")
    run.numbers.check_summary(scores, name)
    check_choice(scores, run.arrays[f"{name}_argmax"], run.numbers.bound(name))


@pytest.mark.slow
@torch.no_grad()
def test_sliding_logits(run, network, dtype):
    logits = slide_logits(network, run.input("image_slide", dtype), WINDOW)
    check_scores(run, logits, "slide_logits", 4)


def check_training(run, network, exact, share=None):
    """Compare losses and gradients, with batch norm, dropout and drop path as in evaluation.

    Those of float32 are compared given the values of a float64 network, ``exact``.
    """
    label = run.arrays["label"][:, 0].long()
    assert (label == 255).any()
    outputs = []

    def losses(network):
        dtype = next(network.parameters()).dtype
        network.training = True  # only at the top: it then gives both heads
        outputs.append(network(run.input("image", dtype)))
        network.training = False
        return SegmentationLoss()(outputs[-1], label)

    network.zero_grad()
    found = run_in_steps(losses, network, exact, share or run.numbers.forward_share)
    accuracies = {
        official: accuracy(outputs[-1][ours], label)
        for ours, official in (("out", "decode.acc_seg"), ("aux", "aux.acc_seg"))
    }
    named = {"decode.loss_ce": found["loss_decode"], "aux.loss_ce": found["loss_aux"]}
    run.numbers.check_losses(named | accuracies, "loss/")
    sum(found.values()).backward()
    names = official_names(network)
    gradients = {names[key]: p.grad for key, p in network.named_parameters()}
    run.numbers.check_gradients(gradients)
    run.numbers.check_gradient_norms(gradients, run.spec["param_order"])


def accuracy(logits, label):
    labelled = label != 255
    hits = (logits.argmax(1) == label)[labelled]
    return 100 * hits.double().mean().float()


def test_losses_accuracy_and_gradients(run, network_of, dtype):
    check_training(run, network_of(dtype), network_of(torch.float64))


def test_batch_norm_statistics_are_part_of_the_weights(run, network, dtype):
    weights = run.weights()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 + 1 + 3 + 3 + 1 + 1
    key = "decode_head.psp_modules.2.1.bn.running_var"
    assert torch.equal(network.decode_head.psp_modules[2].bn.running_var, weights[key].to(dtype))
