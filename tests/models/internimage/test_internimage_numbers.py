"""Networks with official weights give the official numbers, in float64 and float32.

Bounds: see ``tests/official.py``.
"""

from functools import cache

import pytest
import torch

from src.models.weights import load_official
from src.models.weights.names import official_names
from tests.models.steps import run_in_steps

WITH_BATCH_NORM = ["t_like", "b_like", "l_like", "t_like_remove_center"]
CLASSIFIERS = [*WITH_BATCH_NORM, "h_like", "g_like"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
each_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def loaded(run, dtype):
    network = run.build(dtype)
    load_official(network, run.weights())
    return network.eval()


def check_forward(run, network, dtype):
    """Compare the logits of a classifier, and the feature maps inside."""
    maps = {}

    def keep(key):
        return lambda module, inputs, output: maps.update({key: output})

    hooks = [network.patch_embed.register_forward_hook(keep("feat/patch_embed"))]
    for i, stage in enumerate(network.levels):
        hook = stage.blocks[-1].register_forward_hook(keep(f"feat/level{i}_last_block"))
        hooks.append(hook)
    with torch.no_grad():
        logits = network(run.input("image", dtype))
    for hook in hooks:
        hook.remove()
    assert set(maps) == {key for key in run.arrays if key.startswith("feat/")}
    for key, value in maps.items():
        run.numbers.check(value, key)
    run.numbers.check(logits, "logits")


def check_training(run, network, exact, share=None):
    """Compare gradients; those of float32 given the values of a float64 network, ``exact``."""
    images = []

    def loss(network):
        dtype = network.head.weight.dtype
        images.append(run.input("image", dtype).requires_grad_())
        return (network(images[-1]) * run.input("grad_logits", dtype)).sum()

    network.zero_grad()
    run_in_steps(loss, network, exact, share or run.numbers.forward_share).backward()
    names = official_names(network)
    gradients = {names[key]: p.grad for key, p in network.named_parameters()}
    assert set(run.spec["param_order"]) == set(gradients)
    run.numbers.check_gradient_norms(gradients, run.spec["param_order"])
    run.numbers.check_gradients(gradients | {"image": images[-1].grad})


@pytest.fixture(scope="module")
def classifier(official_run):
    """A reference run and the network of one dtype."""

    @cache
    def read(name, dtype):
        run = official_run(f"cls_{name}")
        return run, loaded(run, dtype)

    return read


@DTYPES
@each_classifier
def test_logits_and_feature_maps(classifier, name, dtype):
    check_forward(*classifier(name, dtype), dtype)


@DTYPES
@each_classifier
def test_gradients(classifier, name, dtype):
    check_training(*classifier(name, dtype), classifier(name, torch.float64)[1])


@DTYPES
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_training_mode_uses_batch_statistics(official_run, name, dtype):
    run = official_run(f"cls_{name}")
    network = loaded(run, dtype).train()
    run.numbers.check(network(run.input("image", dtype)), "logits_train_mode")
    norm = network.conv_head.norm
    for statistic in ("running_mean", "running_var"):
        run.numbers.check(getattr(norm, statistic), f"train_mode/conv_head.1.0.{statistic}")


def check_backbone(run, network, dtype, summaries=True):
    """Compare the feature maps that a backbone returns."""
    with torch.no_grad():
        features = network(run.input("image", dtype))
    assert len(features) == 4
    for i, value in enumerate(features):
        run.numbers.check(value, f"feat{i}")
        if summaries:
            run.numbers.check_summary(value, f"feat{i}")


@DTYPES
@pytest.mark.parametrize("name", ["t", "b", "l", "h", "g"])
def test_backbone_maps(official_run, name, dtype):
    run = official_run(f"backbone_det_{name}")
    check_backbone(run, loaded(run, dtype), dtype)
