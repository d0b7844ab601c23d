"""Mask2Former with official weights gives the official masks, scores, losses and gradients.

Bounds: see ``tests/official.py``.
"""

from functools import cache, partial

import pytest
import torch

from src.losses.mask_set import MaskSetLoss, mask_targets, query_classes
from src.models import InternImageBackbone, Mask2Former, Mask2FormerHead
from src.models.segmentation import image_probabilities
from src.models.weights import load_official
from src.models.weights.names import official_names
from tests.models.conftest import load_run, name_noise
from tests.models.steps import run_in_steps
from tests.official import check_choice

LAYERS = 5
HEAD = {
    "channels": 64,
    "num_queries": 20,
    "heads": 8,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "encoder_hidden": 128,
    "decoder_hidden": 128,
}
BACKBONE = {
    "channels": 32,
    "depths": (1, 1, 2, 1),
    "groups": (1, 2, 4, 8),
    "res_post_norm": True,
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "level2_post_norm_block_ids": (1,),
}
KEYS = {"match": "match", "candidates": "oversample", "random": "random"}


class FixedPoints(MaskSetLoss):
    """The loss with the places of the reference run."""

    def draw(self, purpose, shape, like):
        noise = name_noise(f"rand:mask2former_h:{KEYS[purpose]}", torch.Size(shape).numel())
        return torch.from_numpy((noise + 1) / 2).to(like).view(shape)


def loaded(run, dtype):
    network = Mask2Former(
        12, partial(InternImageBackbone, **BACKBONE), partial(Mask2FormerHead, **HEAD)
    )
    report = load_official(network.to(dtype), run.weights())
    assert not report.fresh
    assert not report.unused
    return network.eval()


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["fp64", "fp32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def run():
    return load_run("mask2former_h")


@pytest.fixture(scope="module")
def network_of(run):
    return cache(partial(loaded, run))


@pytest.fixture(scope="module")
def network(network_of, dtype):
    return network_of(dtype)


@torch.no_grad()
def check_forward(run, network, dtype):
    """Compare the maps of the pixel decoder, the predictions of every layer and the scores."""
    features = network.backbone(run.input("image", dtype))
    for i, value in enumerate(features):
        run.numbers.check_summary(value, f"feat{i}")
    mask_features, memory = network.decode_head.pixel_decoder(features)
    named = {"mask_features": mask_features, **{f"memory{i}": x for i, x in enumerate(memory)}}
    for name, value in named.items():
        run.numbers.check(value[:, ::8, ::2, ::2], name, f"{name}_sub")
        run.numbers.check_summary(value, name)
    predictions = network.decode_head.predict(features)
    assert len(predictions) == LAYERS
    for i, (classes, masks) in enumerate(predictions):
        run.numbers.check(classes, f"cls{i}")
        run.numbers.check(masks[:, ::4, ::2, ::2], f"mask{i}", f"mask{i}_sub")
        run.numbers.check_summary(masks, f"mask{i}")
    scores = network.decode_head(features)
    run.numbers.check(scores, "semantic")
    run.numbers.check_summary(scores, "semantic")


def test_every_stored_array(run, network_of, dtype):
    # Which pixels a query attends to hangs on the sign of mask logits.
    run_in_steps(
        lambda network: check_forward(run, network, next(network.parameters()).dtype),
        network_of(dtype),
        network_of(torch.float64),
        run.numbers.forward_share,
    )


@torch.no_grad()
def test_probabilities_of_whole_images(run, network, dtype):
    probability = image_probabilities(network, [run.input("image", dtype)], (75, 110))
    run.numbers.check(probability[:, :, ::4, ::4], "whole_prob", "whole_prob_sub")
    run.numbers.check_summary(probability, "whole_prob")
    bound = run.numbers.bound("whole_prob")
    check_choice(probability, run.arrays["whole_prob_argmax"], bound)


@torch.no_grad()
def test_classes_are_matched_with_the_official_queries(run, network_of, dtype):
    label = run.arrays["label"].long()
    assert (label == 255).any()
    targets = [mask_targets(image, dtype) for image in label]
    for i, target in enumerate(targets):
        assert torch.equal(target.classes, run.arrays[f"gt_labels{i}"])
    predictions = run_in_steps(
        lambda network: network.decode_head.predict(
            network.backbone(run.input("image", next(network.parameters()).dtype))
        ),
        network_of(dtype),
        network_of(torch.float64),
        run.numbers.forward_share,
    )
    loss, assigned = FixedPoints(num_points=112), []
    for classes, masks in predictions:
        pairs = [loss.hungarian_match(*x) for x in zip(classes, masks, targets, strict=True)]
        assigned.append(query_classes(classes, targets, pairs))
    assert torch.equal(torch.stack(assigned), run.arrays["assigned_labels"])


def official_loss_name(name):
    kind = {"class": "cls"}.get(name.rpartition("_")[2], name.rpartition("_")[2])
    layer = f"d{name[len('layer')]}." if name.startswith("layer") else ""
    return f"decode.{layer}loss_{kind}"


def check_training(run, network, exact, share=None):
    """Compare losses and gradients, with drop path as in evaluation.

    Those of float32 are compared given the values of a float64 network, ``exact``.
    """
    label = run.arrays["label"].long()

    def losses(network):
        network.training = True  # only at the top: it then gives what its loss needs
        outputs = network(run.input("image", next(network.parameters()).dtype))
        network.training = False
        return FixedPoints(num_points=112)(outputs, label)

    network.zero_grad()
    found = run_in_steps(losses, network, exact, share or run.numbers.forward_share)
    run.numbers.check_losses({official_loss_name(k): v for k, v in found.items()}, "loss/")
    sum(found.values()).backward()
    names = official_names(network)
    gradients = {names[key]: p.grad for key, p in network.named_parameters()}
    run.numbers.check_gradient_norms(gradients, [name for name, *_ in run.spec["state_dict"]])


def test_losses_and_gradients(run, network_of, dtype):
    check_training(run, network_of(dtype), network_of(torch.float64))
