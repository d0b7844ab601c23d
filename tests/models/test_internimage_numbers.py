"""Networks with official weights give the official numbers, in float64 and float32."""

from functools import cache

import pytest
import torch
from torch.testing import assert_close

from src.models.official_names import official_names
from src.models.weights import load_official

WITH_BATCH_NORM = ["t_like", "b_like", "l_like", "t_like_remove_center"]
CLASSIFIERS = [*WITH_BATCH_NORM, "h_like", "g_like"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
each_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def loaded(run, dtype):
    network = run.build(dtype)
    load_official(network, run.weights())
    return network.eval()


@pytest.fixture(scope="module")
def outcome(official_run):
    """Logits, inner maps and gradients of one forward and backward pass, by official name."""

    @cache
    def compute(name, dtype):
        run = official_run(f"cls_{name}")
        network = loaded(run, dtype)
        maps = {}

        def keep(key):
            return lambda module, inputs, output: maps.update({key: output.detach()})

        network.patch_embed.register_forward_hook(keep("feat/patch_embed"))
        for i, stage in enumerate(network.levels):
            stage.blocks[-1].register_forward_hook(keep(f"feat/level{i}_last_block"))
        image = run.input("image", dtype).requires_grad_()
        logits = network(image)
        (logits * run.input("grad_logits", dtype)).sum().backward()
        names = official_names(network)
        gradients = {names[k]: p.grad for k, p in network.named_parameters()}
        return run, logits, maps, gradients | {"image": image.grad}

    return compute


def check(actual, expected, dtype):
    """Compare at the precision of the run and of the stored reference."""
    scale = max(1.0, expected.abs().max().item())
    if dtype == torch.float32:
        atol = 2e-5 * scale
    else:
        atol = 1e-9 if expected.dtype == torch.float64 else 6e-8 * scale
    assert_close(actual.detach().double(), expected.double(), rtol=0, atol=atol)


@DTYPES
@each_classifier
def test_logits(outcome, name, dtype):
    run, logits, _, _ = outcome(name, dtype)
    check(logits, run.arrays["logits"], dtype)
    if dtype == torch.float32:
        check(logits, run.arrays["logits_f32"], dtype)


@DTYPES
@each_classifier
def test_maps_inside(outcome, name, dtype):
    run, _, maps, _ = outcome(name, dtype)
    expected = {k: v for k, v in run.arrays.items() if k.startswith("feat/")}
    assert set(maps) == set(expected)
    for key, value in expected.items():
        check(maps[key], value, dtype)


@DTYPES
@each_classifier
def test_gradients(outcome, name, dtype):
    run, _, _, gradients = outcome(name, dtype)
    stored = {k.removeprefix("grad/"): v for k, v in run.arrays.items() if k.startswith("grad/")}
    assert len(stored) > 10
    for key, expected in stored.items():
        check(gradients[key], expected, dtype)


@DTYPES
@each_classifier
def test_gradient_norms_of_all_parameters(outcome, name, dtype):
    run, _, _, gradients = outcome(name, dtype)
    assert set(run.spec["param_order"]) == set(gradients) - {"image"}
    norms = torch.stack([gradients[key].norm().double() for key in run.spec["param_order"]])
    # The key bias cancels in the softmax: its gradient is rounding noise around zero.
    rtol, atol = (1e-4, 1e-6) if dtype == torch.float32 else (1e-9, 1e-12)
    assert_close(norms, run.arrays["grad_norms"].double(), rtol=rtol, atol=atol)


@DTYPES
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_training_mode_uses_batch_statistics(official_run, name, dtype):
    run = official_run(f"cls_{name}")
    network = loaded(run, dtype).train()
    check(network(run.input("image", dtype)), run.arrays["logits_train_mode"], dtype)
    norm = network.conv_head.norm
    for statistic in ("running_mean", "running_var"):
        expected = run.arrays[f"train_mode/conv_head.1.0.{statistic}"]
        check(getattr(norm, statistic), expected, dtype)


@DTYPES
@pytest.mark.parametrize("name", ["t", "b", "l", "h", "g"])
def test_backbone_maps(official_run, name, dtype):
    run = official_run(f"backbone_det_{name}")
    maps = loaded(run, dtype)(run.input("image", dtype))
    assert len(maps) == 4
    for i, value in enumerate(maps):
        check(value, run.arrays[f"feat{i}"], dtype)
        summary = torch.stack([value.double().sum(), value.double().norm()])
        # Sums of up to 12,288 values of which each may be off by the tolerance above.
        tolerance = 1e-11 if dtype == torch.float64 else 2e-5
        expected = run.arrays[f"feat{i}_sum_norm"]
        assert_close(summary, expected, rtol=0, atol=tolerance * value.numel())
