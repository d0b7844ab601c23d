"""The bounds of float32 are not so wide that a network with one wrong weight passes.

One weight tensor of each network is 1 % too large, and the comparisons must fail: that of the
forward pass and that of gradients alone where it is the offsets of the first DCNv3, whose results
most layers blur; that of the layers of a training step where it is the last layer of a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from tests.models.conftest import load_run
from tests.models.detection.dino import test_dino_numbers as dino
from tests.models.detection.rcnn import test_rcnn_numbers as two_stage
from tests.models.internimage import test_internimage_numbers as classifiers
from tests.models.segmentation import test_upernet_numbers as upernet
from tests.models.segmentation.mask2former import test_mask2former_numbers as mask2former

slow = pytest.mark.slow
LAST_LAYERS = {
    **{f"cls_{name}": (classifiers, "head.weight") for name in classifiers.CLASSIFIERS},
    "upernet_t": (upernet, "auxiliary_head.conv_seg.weight"),
    "mask2former_h": (mask2former, "decode_head.cls_embed.weight"),
    "mask_rcnn_t": (two_stage, "roi_head.bbox_head.fc_reg.weight"),
    "cascade_l": (two_stage, "roi_head.mask_head.2.conv_logits.weight"),
    "dino_t": (dino, "bbox_head.reg_branches.3.4.weight"),
    "cbdino_h": (dino, "bbox_head.reg_branches.3.4.weight"),
}
every_network = pytest.mark.parametrize("name", LAST_LAYERS)
every_training = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=slow if module is two_stage else ())
        for name, (module, _) in LAST_LAYERS.items()
    ],
)


@dataclass
class Comparisons:
    """How the tests beside this one read a network and compare it."""

    read: Callable[[torch.dtype], Any]
    forward: Callable[[Any], None]
    training: Callable[..., None]


def comparisons(name: str) -> Comparisons:
    module, _ = LAST_LAYERS[name]
    if module in (two_stage, dino):
        training = module.check_training
        if module is two_stage:
            training = partial(training, sampling="first_k")
        return Comparisons(partial(module.read_run, name), module.check_forward, training)
    run = load_run(name)
    return Comparisons(
        partial(module.loaded, run),
        lambda network: module.check_forward(run, network, torch.float32),
        partial(module.check_training, run),
    )


def first_offsets(network):
    return next(n for n, _ in network.named_parameters() if n.endswith("dcn.offset.weight"))


def enlarge(network, weight):
    with torch.no_grad():
        network.get_parameter(weight).mul_(1.01)


def network_of(subject):
    return getattr(subject, "network", subject)


@every_network
def test_forward_pass(name):
    compared = comparisons(name)
    wrong = compared.read(torch.float32)
    enlarge(network_of(wrong), first_offsets(network_of(wrong)))
    with pytest.raises(AssertionError):
        compared.forward(wrong)


@every_training
def test_gradients_alone(name):
    compared = comparisons(name)
    wrong, exact = compared.read(torch.float32), compared.read(torch.float64)
    enlarge(network_of(wrong), first_offsets(network_of(wrong)))
    with pytest.raises(AssertionError, match=r"dcn|patch_embed"):
        compared.training(wrong, exact, share=math.inf)


@every_training
def test_layers_of_a_training_step(name):
    compared = comparisons(name)
    wrong, exact = compared.read(torch.float32), compared.read(torch.float64)
    enlarge(network_of(wrong), LAST_LAYERS[name][1])
    with pytest.raises(AssertionError, match="one layer"):
        compared.training(wrong, exact)
