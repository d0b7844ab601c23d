"""Mask2Former with official weights gives the official masks, scores, losses and gradients."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from src.losses.mask_set import MaskSetLoss, mask_targets, query_classes
from src.models import InternImageBackbone, Mask2Former, Mask2FormerHead
from src.models.official_names import official_names
from src.models.segmentors import picture_probabilities
from src.models.weights import load_official
from tests.models.conftest import name_noise

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


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["fp64", "fp32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def run(official_run):
    return official_run("mask2former_h")


@pytest.fixture(scope="module")
def network(run, dtype):
    network = Mask2Former(
        12, partial(InternImageBackbone, **BACKBONE), partial(Mask2FormerHead, **HEAD)
    )
    report = load_official(network.to(dtype), run.weights())
    assert not report.fresh
    assert not report.unused
    return network.eval()


def check(actual, expected, dtype, atol):
    """Compare at the precision of the run and of the stored reference."""
    if dtype == torch.float64:
        scale = max(1.0, expected.abs().max().item())
        atol = (1e-9 if expected.dtype == torch.float64 else 6e-8) * scale
    assert_close(actual.detach().double(), expected.double(), rtol=0, atol=atol)


def check_summary(actual, expected, dtype, per_value):
    """Compare the sum and the norm of a whole array."""
    summary = torch.stack([actual.double().sum(), actual.double().norm()]).detach()
    each = 1e-11 if dtype == torch.float64 else per_value
    assert_close(summary, expected, rtol=0, atol=each * actual.numel())


@torch.no_grad()
def test_every_stored_array(run, network, dtype):
    features = network.backbone(run.input("image", dtype))
    for i, value in enumerate(features):
        check_summary(value, run.arrays[f"feat{i}_sum_norm"], dtype, 2e-5)
    mask_features, memory = network.decode_head.pixel_decoder(features)
    named = {"mask_features": mask_features, **{f"memory{i}": x for i, x in enumerate(memory)}}
    for name, value in named.items():
        check(value[:, ::8, ::2, ::2], run.arrays[f"{name}_sub"], dtype, 3e-5)
        check_summary(value, run.arrays[f"{name}_sum_norm"], dtype, 3e-5)
    predictions = network.decode_head.predict(features)
    assert len(predictions) == LAYERS
    for i, (classes, masks) in enumerate(predictions):
        check(classes, run.arrays[f"cls{i}"], dtype, 3e-5)
        check(masks[:, ::4, ::2, ::2], run.arrays[f"mask{i}_sub"], dtype, 1e-4)
        check_summary(masks, run.arrays[f"mask{i}_sum_norm"], dtype, 1e-4)
    scores = network.decode_head(features)
    check(scores, run.arrays["semantic"], dtype, 3e-5)
    check_summary(scores, run.arrays["semantic_sum_norm"], dtype, 3e-5)


@torch.no_grad()
def test_probabilities_of_whole_pictures(run, network, dtype):
    probability = picture_probabilities(network, [run.input("image", dtype)], (75, 110))
    check(probability[:, :, ::4, ::4], run.arrays["whole_prob_sub"], dtype, 3e-6)
    check_summary(probability, run.arrays["whole_prob_sum_norm"], dtype, 3e-6)
    assert torch.equal(probability.argmax(1), run.arrays["whole_prob_argmax"].long())


@torch.no_grad()
def test_classes_are_matched_with_the_official_queries(run, network, dtype):
    label = run.arrays["label"].long()
    assert (label == 255).any()
    targets = [mask_targets(picture, dtype) for picture in label]
    for i, target in enumerate(targets):
        assert torch.equal(target.classes, run.arrays[f"gt_labels{i}"])
    loss = FixedPoints(num_points=112)
    predictions = network.decode_head.predict(network.backbone(run.input("image", dtype)))
    assigned = []
    for classes, masks in predictions:
        pairs = [loss.match(*x) for x in zip(classes, masks, targets, strict=True)]
        assigned.append(query_classes(classes, targets, pairs))
    assert torch.equal(torch.stack(assigned), run.arrays["assigned_labels"])


@pytest.fixture
def trainable(network):
    """The network gives what its loss needs, with drop path as in evaluation."""
    network.training = True
    # oneDNN's fast convolutions round so coarsely that some ReLU inputs change sign.
    with torch.backends.mkldnn.flags(enabled=False):
        yield network
    network.eval().zero_grad()


def official_loss_name(name):
    kind = {"class": "cls"}.get(name.rpartition("_")[2], name.rpartition("_")[2])
    layer = f"d{name[len('layer')]}." if name.startswith("layer") else ""
    return f"loss/decode.{layer}loss_{kind}"


def test_losses_and_gradients(run, trainable, dtype):
    outputs = trainable(run.input("image", dtype))
    losses = FixedPoints(num_points=112)(outputs, run.arrays["label"].long())
    stored = {name: value for name, value in run.arrays.items() if name.startswith("loss/")}
    assert {official_loss_name(name) for name in losses} == stored.keys()
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    for name, value in losses.items():
        expected = stored[official_loss_name(name)][0]
        assert_close(value.double(), expected, rtol=rtol, atol=0, msg=name)

    sum(losses.values()).backward()
    names = official_names(trainable)
    gradients = {names[k]: p.grad for k, p in trainable.named_parameters()}
    norms = [gradients[name].double().norm() for name, _, _ in run.spec["state_dict"]]
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    assert_close(torch.stack(norms), run.arrays["grad_norms"], rtol=rtol, atol=1e-9)
