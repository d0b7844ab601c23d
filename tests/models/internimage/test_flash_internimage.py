"""FlashInternImage computes what the official code computes, in float64 and float32.

Bounds: see ``tests/official.py``.
"""

import json
from functools import cache

import numpy as np
import pytest
import torch

from src.models import DCNv4
from src.models.weights.names import official_names
from tests.models.conftest import FIXTURES, name_noise, name_weight
from tests.models.internimage.test_internimage_numbers import (
    DTYPES,
    check_backbone,
    check_training,
    loaded,
)
from tests.models.steps import run_in_steps
from tests.official import OfficialNumbers

VARIANTS = pytest.mark.parametrize("variant", ["t", "s", "b", "l"])
LAYERS = json.loads((FIXTURES / "dcnv4_module.json").read_text())


@pytest.fixture(scope="module")
def network_of(official_run):
    """A reference run and the network of one dtype."""

    @cache
    def read(name, dtype):
        run = official_run(f"flash_{name}")
        return run, loaded(run, dtype)

    return read


@DTYPES
@VARIANTS
def test_logits_and_feature_maps(network_of, variant, dtype):
    run, network = network_of(f"cls_{variant}", dtype)
    found = {}

    def keep(name):
        return lambda module, inputs, output: found.update({name: output})

    layer = network.levels[0].blocks[0].dcn
    hooks = [
        network.patch_embed.register_forward_hook(keep("patch_embed")),
        layer.offset_mask.register_forward_hook(keep("rows")),
        layer.register_forward_hook(keep("layer")),
    ]
    with torch.no_grad():
        image = run.input("image", dtype)
        logits, features = network(image), network.forward_stages(image)
    for hook in hooks:
        hook.remove()
    run.numbers.check(found["patch_embed"], "patch_embed")
    run.numbers.check(found["rows"].flatten(1, 2)[:, ::5], "block0_offset_mask_sub")
    run.numbers.check(found["layer"].flatten(1, 2)[:, ::3], "block0_dcn_sub")
    for i, value in enumerate(features):
        run.numbers.check(value, f"feat{i}")
    run.numbers.check(logits, "logits")


@DTYPES
@VARIANTS
def test_gradients(network_of, variant, dtype):
    run, network = network_of(f"cls_{variant}", dtype)
    check_training(run, network, network_of(f"cls_{variant}", torch.float64)[1])


@DTYPES
@VARIANTS
def test_training_mode_uses_batch_statistics(official_run, variant, dtype):
    run = official_run(f"flash_cls_{variant}")
    network = loaded(run, dtype).train()
    run.numbers.check(network(run.input("image", dtype)), "logits_train_mode")
    for statistic in ("running_mean", "running_var"):
        value = getattr(network.conv_head.norm, statistic)
        run.numbers.check(value, f"train_mode/{statistic}")


@DTYPES
@VARIANTS
def test_backbone(network_of, variant, dtype):
    name = f"backbone_{variant}"
    run, network = network_of(name, dtype)
    exact = network_of(name, torch.float64)[1]

    def loss(network):
        dtype = next(network.parameters()).dtype
        noise = f"flash_{name}:grad"
        return sum(
            (value * torch.from_numpy(noise_like(f"{noise}{i}", value)).to(dtype)).sum()
            for i, value in enumerate(network(run.input("image", dtype)))
        )

    check_backbone(run, network, dtype, summaries=False)
    network.zero_grad()
    run_in_steps(loss, network, exact, run.numbers.forward_share).backward()
    names = official_names(network)
    gradients = {f"backbone.{names[key]}": p.grad for key, p in network.named_parameters()}
    run.numbers.check_gradients(gradients)
    run.numbers.check_gradient_norms(gradients, run.spec["param_order"])


def noise_like(name, value):
    return name_noise(name, value.numel()).reshape(value.shape).astype(np.float32)


@pytest.fixture(scope="module")
def layers():
    with np.load(FIXTURES / "dcnv4_module.npz") as arrays:
        return OfficialNumbers.read(LAYERS, arrays)


@DTYPES
@pytest.mark.parametrize("variant", LAYERS["variants"])
def test_layer(layers, variant, dtype):
    spec = dict(LAYERS["variants"][variant])
    height, width = spec.pop("HW")
    shapes, count = spec.pop("state_dict"), spec.pop("parameters")
    layer = DCNv4(spec.pop("channels"), spec.pop("group"), **spec)
    layer.load_state_dict({name: name_weight(name, shape) for name, shape in shapes.items()})
    assert sum(p.numel() for p in layer.parameters()) == count
    x, grad = (
        torch.from_numpy(
            name_noise(f"mod4:{variant}:{name}", 2 * height * width * layer.channels)
            .reshape(2, height, width, layer.channels)
            .astype(np.float32)
        ).to(dtype)
        for name in ("x", "gy")
    )
    y = layer.to(dtype)(x.requires_grad_())
    y.backward(grad)
    layers.check(y.flatten(1, 2), f"{variant}/y")
    gradients = {"x": x.grad.flatten(1, 2)} | {k: p.grad for k, p in layer.named_parameters()}
    for name, value in gradients.items():
        layers.check(value, f"{variant}/grad/{name}")


def test_columns_after_the_last_group_do_not_learn():
    torch.manual_seed(0)
    layer = DCNv4(16, 1)
    torch.nn.init.normal_(layer.offset_mask.weight, std=0.1)
    layer(torch.randn(1, 4, 4, 16)).square().sum().backward()
    assert layer.offset_mask.weight.shape == (32, 16)
    assert layer.offset_mask.weight.grad[27:].count_nonzero() == 0
    assert layer.offset_mask.weight.grad[:27].count_nonzero(dim=1).min() > 0


def test_output_is_the_bias_initially():
    layer = DCNv4(32, 2, dw_kernel_size=3)
    torch.nn.init.normal_(layer.output_proj.bias)
    out = layer(torch.randn(2, 5, 6, 32))
    assert torch.equal(out, layer.output_proj.bias.expand_as(out))
