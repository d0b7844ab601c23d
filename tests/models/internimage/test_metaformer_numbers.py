"""The classifier of iNaturalist gives the official numbers, in float64 and float32.

Bounds: see ``tests/official.py``.
"""

from functools import cache

import pytest
import torch

from src.data.formats.inaturalist import encode_date, encode_place
from src.models import InternImage, InternImageMetaFormer
from src.models.weights import load_official, to_official
from src.models.weights.names import official_names
from tests.models.conftest import RENAMED_AWAY
from tests.models.internimage.test_internimage_numbers import DTYPES
from tests.models.steps import run_in_steps

VALUES = ("temporal", "spatial")


@pytest.fixture(scope="module")
def run(official_run):
    return official_run("metaformer_h")


@pytest.fixture(scope="module")
def network_of(run):
    """The network of the official run in one dtype, with the official weights."""
    kwargs = {k: v for k, v in run.spec["kwargs"].items() if k not in RENAMED_AWAY}

    @cache
    def build(dtype):
        network = InternImageMetaFormer(**kwargs).to(dtype)
        report = load_official(network, run.weights())
        assert not report.fresh
        assert not report.unused
        return network.eval()

    return build


def inputs_of(run, dtype):
    return [run.input("image", dtype), *(run.arrays[name].to(dtype, copy=True) for name in VALUES)]


def test_dates_and_places_are_encoded_as_officially(run):
    rows = run.spec["metadata"]
    temporal = torch.tensor([encode_date(date) for date, *_ in rows], dtype=torch.float64)
    spatial = torch.tensor([encode_place(*place) for _, *place in rows], dtype=torch.float64)
    run.numbers.check(temporal, "temporal")
    run.numbers.check(spatial, "spatial")


@DTYPES
def test_forward(run, network_of, dtype):
    network = network_of(dtype)
    image, temporal, spatial = inputs_of(run, dtype)
    with torch.no_grad():
        features = network.forward_stages(image)
        for i, value in enumerate(features):
            run.numbers.check(value.permute(0, 2, 3, 1), f"feat{i}")
        pooled = network.forward_head(network.forward_features(image), pre_logits=True)
        run.numbers.check(pooled, "clip")
        run.numbers.check(network.meta_head_1(temporal), "meta1")
        run.numbers.check(network.meta_head_2(spatial), "meta2")
        run.numbers.check(network.metadata_logits(image, temporal, spatial), "meta_logits")
        run.numbers.check(network(image, temporal, spatial), "logits")


@DTYPES
def test_gradients(run, network_of, dtype):
    values = {}

    def loss(network):
        dtype = network.head.weight.dtype
        image, temporal, spatial = inputs_of(run, dtype)
        values.update(temporal=temporal.requires_grad_(), spatial=spatial.requires_grad_())
        logits = network(image, temporal, spatial)
        return (logits * run.input("grad_logits", dtype)).sum()

    network = network_of(dtype)
    network.zero_grad()
    exact = network_of(torch.float64)
    run_in_steps(loss, network, exact, run.numbers.forward_share).backward()
    names = official_names(network)
    gradients = {names[key]: p.grad for key, p in network.named_parameters()}
    assert set(run.spec["param_order"]) == set(gradients)
    run.numbers.check_gradient_norms(gradients, run.spec["param_order"])
    run.numbers.check_gradients(gradients | {name: values[name].grad for name in VALUES})


def test_unknown_metadata_are_zeros(run, network_of):
    network = network_of(torch.float32)
    image, temporal, spatial = inputs_of(run, torch.float32)
    with torch.no_grad():
        zeros = network(image, torch.zeros_like(temporal), torch.zeros_like(spatial))
        assert torch.equal(network(image), zeros)
        assert not torch.equal(network(image, temporal, spatial), zeros)


def test_weights_of_other_classes_leave_both_heads_as_they_are(run):
    kwargs = {k: v for k, v in run.spec["kwargs"].items() if k not in RENAMED_AWAY}
    network = InternImageMetaFormer(**kwargs | {"num_classes": 5})
    report = load_official(network, run.weights())
    heads = {f"{head}.{kind}" for head in ("head", "meta_head") for kind in ("weight", "bias")}
    assert set(report.fresh) == heads
    assert network.head.weight.abs().max() < 1e-3 < network.meta_head.weight.abs().max()


def test_weights_of_a_plain_classifier_start_it(run):
    kwargs = {k: v for k, v in run.spec["kwargs"].items() if k not in RENAMED_AWAY}
    network = InternImageMetaFormer(**kwargs)
    report = load_official(network, to_official(InternImage(**kwargs | {"num_classes": 21841})))
    fresh = {name.split(".")[0] for name in report.fresh}
    assert fresh == {"head", "meta_head", "meta_head_1", "meta_head_2", "meta_norm"}


def test_it_can_return_features(run, network_of):
    kwargs = {k: v for k, v in run.spec["kwargs"].items() if k not in RENAMED_AWAY}
    network = InternImageMetaFormer(**kwargs | {"num_classes": 0})
    assert network(run.input("image")).shape == (3, 768)
    network.reset_classifier(4)
    assert network(run.input("image")).shape == (3, 4)
