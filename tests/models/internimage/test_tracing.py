"""``torch.jit.trace`` of the networks, and the answer of ``torch.jit.script``."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import src.models  # noqa: F401  registers the variants with timm
from src.errors import UserError
from src.models import InternImage
from tests.official import assert_same_network

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*is deprecated", "ignore::torch.jit.TracerWarning"
)


def as_list(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@pytest.mark.parametrize("has_gradients", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("features_only", [False, True], ids=["classifier", "backbone"])
def test_a_trace_computes_the_same_after_saving(
    tmp_path: Path, features_only: bool, training: bool, has_gradients: bool
) -> None:
    settings = {"features_only": True} if features_only else {"num_classes": 5}
    network = timm.create_model("internimage_nano", drop_path_rate=0.0, **settings).train(training)
    with torch.set_grad_enabled(has_gradients):
        traced = torch.jit.trace(network, torch.randn(2, 3, 64, 64))
        torch.jit.save(traced, tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
        image = torch.randn(3, 3, 96, 64)  # the size is no part of the trace
        expected, computed = as_list(network(image)), as_list(loaded(image))
    assert_same_network(computed, expected)
    if has_gradients:
        computed[-1].sum().backward()
        assert any(parameter.grad is not None for parameter in loaded.parameters())


def test_a_network_with_every_option_is_traced() -> None:
    network = InternImage(
        num_classes=5,
        channels=16,
        depths=(1, 1, 1, 1),
        groups=(1, 2, 4, 8),
        center_feature_scale=True,
        dw_kernel_size=5,
        remove_center=True,
        use_clip_projector=True,
        res_post_norm=True,
    ).eval()
    image = torch.randn(2, 3, 64, 64)
    assert_same_network(torch.jit.trace(network, image)(image), network(image))


def test_scripting_is_refused_in_one_sentence() -> None:
    network = timm.create_model("internimage_nano", features_only=True)
    with pytest.raises(UserError, match=r"use torch\.jit\.trace"):
        torch.jit.script(network)
