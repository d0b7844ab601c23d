"""UPerNet with official weights gives the official scores, probabilities, losses and gradients."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from src.losses.segmentation import SegmentationLoss
from src.models import InternImageBackbone
from src.models.official_names import official_names
from src.models.segmentors import Segmentor, SlidingWindow, picture_probabilities, slide_logits
from src.models.weights import load_official

WINDOW = SlidingWindow(crop_size=(64, 64), stride=(42, 42))


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["fp64", "fp32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def run(official_run):
    return official_run("upernet_t")


@pytest.fixture(scope="module")
def network(run, dtype):
    backbone = partial(InternImageBackbone, layer_scale=1.0, **run.spec["backbone_overrides"])
    network = Segmentor(150, backbone).to(dtype)
    load_official(network, run.weights())
    return network.eval()


def check(actual, expected, dtype, atol=3e-5):
    """Compare at the precision of the run and of the stored reference."""
    scale = max(1.0, expected.abs().max().item())
    if dtype == torch.float64:
        atol = 1e-9 if expected.dtype == torch.float64 else 6e-8
    assert_close(actual.detach().double(), expected.double(), rtol=0, atol=atol * scale)


def check_summary(actual, expected, dtype, per_value):
    """Compare the sum and the norm of a whole array."""
    summary = torch.stack([actual.double().sum(), actual.double().norm()]).detach()
    each = 1e-11 if dtype == torch.float64 else per_value
    assert_close(summary, expected, rtol=0, atol=each * actual.numel())


def test_features_and_logits(run, network, dtype):
    features = network.backbone(run.input("image", dtype))
    for i, value in enumerate(features):
        check_summary(value, run.arrays[f"feat{i}_sum_norm"], dtype, 2e-5)
    decode = network.decode_head(features)
    check(decode[:, ::5], run.arrays["decode_logits_ch5"], dtype)
    check_summary(decode, run.arrays["decode_logits_sum_norm"], dtype, 3e-5)
    check(network.auxiliary_head(features), run.arrays["aux_logits"], dtype)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("whole_prob", (75, 110), {}),
        ("whole_crop_prob", (75, 110), {"content_size": (60, 90)}),
    ],
)
@torch.no_grad()
def test_probabilities_of_whole_pictures(run, network, dtype, name, size, options):
    probability = picture_probabilities(network, [run.input("image", dtype)], size, **options)
    check_probability(probability, run, name, dtype)


@torch.no_grad()
def test_probabilities_of_a_sliding_window(run, network, dtype):
    views = [run.input("image_slide", dtype)]
    probability = picture_probabilities(network, views, (120, 139), window=WINDOW, flipped=[True])
    check_probability(probability, run, "slide_prob_flip", dtype)
    check_probability(probability.flip(-1), run, "slide_prob", dtype)


def check_probability(probability, run, name, dtype):
    check(probability[:, ::10, ::4, ::4], run.arrays[f"{name}_sub"], dtype, 1e-6)
    check_summary(probability, run.arrays[f"{name}_sum_norm"], dtype, 1e-6)
    assert torch.equal(probability.argmax(1), run.arrays[f"{name}_argmax"].long())


@pytest.mark.slow
@torch.no_grad()
def test_sliding_logits(run, network, dtype):
    logits = slide_logits(network, run.input("image_slide", dtype), WINDOW)
    check(logits[:, ::10, ::4, ::4], run.arrays["slide_logits_sub"], dtype)
    check_summary(logits, run.arrays["slide_logits_sum_norm"], dtype, 3e-5)
    assert torch.equal(logits.argmax(1), run.arrays["slide_logits_argmax"].long())


@pytest.fixture
def trainable(network):
    """The network gives both heads, with batch norm, dropout and drop path as in evaluation."""
    network.training = True
    # oneDNN's fast convolutions round so coarsely that some ReLU inputs change sign.
    with torch.backends.mkldnn.flags(enabled=False):
        yield network
    network.eval().zero_grad()


def test_losses_and_gradients(run, trainable, dtype):
    label = run.arrays["label"][:, 0].long()
    assert (label == 255).any()
    outputs = trainable(run.input("image", dtype))
    losses = SegmentationLoss()(outputs, label)
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    for ours, official in (("loss_decode", "decode.loss_ce"), ("loss_aux", "aux.loss_ce")):
        expected = run.arrays[f"loss/{official}"][0]
        assert_close(losses[ours].double(), expected, rtol=rtol, atol=0)

    sum(losses.values()).backward()
    names = official_names(trainable)
    gradients = {names[k]: p.grad for k, p in trainable.named_parameters()}
    stored = {k.removeprefix("grad/"): v for k, v in run.arrays.items() if k.startswith("grad/")}
    assert len(stored) == 10
    for name, expected in stored.items():
        atol = (1e-5 if dtype == torch.float32 else 1e-10) * expected.abs().max().item()
        assert_close(gradients[name].double(), expected, rtol=0, atol=atol)
    norms = torch.stack([gradients[name].double().norm() for name in run.spec["param_order"]])
    rtol = 1e-4 if dtype == torch.float32 else 1e-9
    assert_close(norms, run.arrays["grad_norms"], rtol=rtol, atol=1e-9)


def test_pixel_accuracy(run, trainable, dtype):
    with torch.no_grad():
        outputs = trainable(run.input("image", dtype))
    label = run.arrays["label"][:, 0].long()
    labelled = label != 255
    for output, official in (("out", "decode.acc_seg"), ("aux", "aux.acc_seg")):
        hits = (outputs[output].argmax(1) == label)[labelled].double().mean()
        assert_close(100 * hits.float(), run.arrays[f"loss/{official}"][0])


def test_batch_norm_statistics_are_part_of_the_weights(run, network, dtype):
    weights = run.weights()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 + 1 + 3 + 3 + 1 + 1
    key = "decode_head.psp_modules.2.1.bn.running_var"
    assert torch.equal(network.decode_head.psp_modules[2].bn.running_var, weights[key].to(dtype))
