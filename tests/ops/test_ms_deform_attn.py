"""Multi-scale deformable attention: values, gradients, dtypes, compile, export, errors."""

import importlib
import sys
import types
import warnings

import pytest
import torch
from dcnv3_cases import FLOAT32
from torch import nn
from torch.autograd import gradcheck
from torch.library import opcheck

from src.ops import OpNotBuiltError, backends, ms_deform_attn, ms_deform_attn_reference
from src.ops._deformops import DeformOps

SHAPES = [(5, 7), (3, 4), (1, 2)]
SIDES = [side for shape in SHAPES for side in shape]
OPS = torch.ops.internimage


def make_inputs(n=2, queries=6, heads=3, channels=4, points=2, dtype=torch.float64, spread=1.4):
    """Values, locations (some outside the feature maps) and weights."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(height * width for height, width in SHAPES)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    places = (n, queries, heads, len(SHAPES), points)
    return (
        (rand(n, pixels, heads, channels) - 0.5).to(dtype),
        (0.5 + spread * (rand(*places, 2) - 0.5)).to(dtype),
        rand(*places).to(dtype),
    )


def run(operator, value, locations, weights):
    leaves = [t.detach().clone().requires_grad_() for t in (value, locations, weights)]
    output = operator(leaves[0], SHAPES, *leaves[1:])
    grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


def test_one_sample_by_hand():
    value = torch.arange(6.0).view(1, 6, 1, 1)  # one feature map of 2 x 3 pixels
    centre_of_last = torch.tensor([2.5 / 3, 1.5 / 2]).view(1, 1, 1, 1, 1, 2)
    corner = torch.ones(1, 1, 1, 1, 1, 2)
    weight = torch.full((1, 1, 1, 1, 1), 2.0)
    assert ms_deform_attn(value, [(2, 3)], centre_of_last, weight).item() == pytest.approx(10)
    assert ms_deform_attn(value, [(2, 3)], corner, weight).item() == pytest.approx(10 / 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_and_gradients_equal_the_reference(dtype):
    tolerance = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else FLOAT32
    inputs = make_inputs(dtype=dtype)
    for ours, expected in zip(
        run(ms_deform_attn, *inputs), run(ms_deform_attn_reference, *inputs), strict=True
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_values_with_float32_locations(dtype):
    value, locations, weights = make_inputs(dtype=torch.float32)
    value = value.to(dtype)
    wide = ms_deform_attn(value.double(), SHAPES, locations.double(), weights.double())
    output, *grads = run(ms_deform_attn, value, locations, weights)
    assert [t.dtype for t in (output, *grads)] == [dtype, dtype, torch.float32, torch.float32]
    torch.testing.assert_close(output.double(), wide, atol=1e-2, rtol=1e-2)


def test_gradcheck():
    inputs = [t.requires_grad_() for t in make_inputs(n=1, queries=2, heads=2, channels=2)]
    assert gradcheck(lambda v, x, w: ms_deform_attn(v, SHAPES, x, w), inputs)


def test_only_the_reference_has_a_second_derivative():
    inputs = [t.requires_grad_() for t in make_inputs(n=1, queries=2)]
    for operator in (ms_deform_attn, ms_deform_attn_reference):
        first = torch.autograd.grad(
            operator(inputs[0], SHAPES, *inputs[1:]).sum(), inputs[1], create_graph=True
        )
        if operator is ms_deform_attn:
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(first[0].sum(), inputs[2])
        else:
            assert torch.autograd.grad(first[0].sum(), inputs[2])[0].any()


@pytest.mark.parametrize("empty", ["n", "queries"])
def test_empty_inputs(empty):
    results = run(ms_deform_attn, *make_inputs(**{empty: 0}))
    assert results[0].numel() == 0
    assert not results[1].any()


def test_opcheck():
    value, locations, weights = (t.requires_grad_() for t in make_inputs())
    opcheck(OPS.ms_deform_attn.default, (value, SIDES, locations, weights))
    grad = torch.ones(2, 6, 12, dtype=torch.float64)
    detached = (value.detach(), SIDES, locations.detach(), weights.detach())
    opcheck(OPS.ms_deform_attn_backward.default, (grad, *detached))


def test_autocast_casts_the_values_only():
    value, locations, weights = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = ms_deform_attn(value, SHAPES, locations, weights)
    assert got.dtype == torch.bfloat16
    want = ms_deform_attn(value.bfloat16(), SHAPES, locations, weights)
    torch.testing.assert_close(got, want)


class Layer(nn.Module):
    def forward(self, value, locations, weights):
        return ms_deform_attn(value, SHAPES, locations, weights)


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    inputs = make_inputs()

    def operator(value, shapes, locations, weights):
        return compiled(value, locations, weights)

    for got, want in zip(run(operator, *inputs), run(ms_deform_attn, *inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_export_with_any_number_of_queries():
    inputs = make_inputs(dtype=torch.float32)
    queries = {1: torch.export.Dim("q", min=2, max=64)}
    program = torch.export.export(Layer(), inputs, dynamic_shapes=({}, queries, queries))
    assert OPS.ms_deform_attn.default in [node.target for node in program.graph.nodes]
    other = make_inputs(queries=9, dtype=torch.float32)
    torch.testing.assert_close(program.module()(*other), Layer()(*other))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"value": torch.zeros(2, 49, 12)}, ValueError, "value must have shape"),
        ({"value": torch.zeros(2, 49, 3, 4).long()}, TypeError, "got torch.int64"),
        ({"spatial_shapes": [(5, 7), (3, 4)]}, ValueError, "have 47 pixels, value has 49"),
        ({"spatial_shapes": []}, ValueError, "at least one"),
        ({"locations": torch.zeros(2, 6, 3, 3, 2)}, ValueError, "locations must have shape"),
        ({"locations": torch.zeros(2, 6, 3, 2, 2, 2)}, ValueError, r"\(2, 6, 3, 3, 2, 2\)"),
        ({"weights": torch.zeros(2, 6, 3, 3, 1)}, ValueError, "weights must have shape"),
        (
            {"weights": torch.zeros(2, 6, 3, 3, 2).double()},
            TypeError,
            "weights must have the dtype",
        ),
        (
            {"locations": torch.zeros(2, 6, 3, 3, 2, 2, device="meta")},
            ValueError,
            "of value, cpu, got meta",
        ),
    ],
)
def test_invalid_arguments(changes, error, message):
    value, locations, weights = make_inputs(dtype=torch.float32)
    given = {"value": value, "spatial_shapes": SHAPES, "locations": locations, "weights": weights}
    with pytest.raises(error, match=message):
        ms_deform_attn(**(given | changes))


def test_backends_name_every_operator():
    assert set(backends("ms_deform_attn")) == {"cpu", "cuda"}
    assert backends("ms_deform_attn")["cpu"] == "grid_sample"
    with pytest.raises(ValueError, match="operator must be one of dcnv3, dcnv4, ms_deform_attn"):
        backends("conv")


def not_installed(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])


def test_a_gpu_without_deformops_warns_once_or_raises(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib, "import_module", not_installed)
    missing = DeformOps("auto")
    assert missing.report()["cuda"] == "grid_sample (deformops is not installed)"
    missing.on_fallback("cpu")
    with pytest.warns(UserWarning, match="pip install deformops"):
        missing.on_fallback("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing.on_fallback("cuda")
    with pytest.raises(OpNotBuiltError, match="deformops"):
        DeformOps("compiled").on_fallback("cuda")
    DeformOps("reference").on_fallback("cuda")


def test_deformops_gets_shapes_starts_and_weights_of_one_dtype(monkeypatch):
    """Its documented call with a mock: value, shapes, starts, locations, weights."""
    calls = []

    def stand_in(*arguments):
        calls.append(arguments)
        return arguments[0].flatten(2)

    registry = types.ModuleType("deformops.registry")
    registry.msda = stand_in
    monkeypatch.setitem(sys.modules, "deformops", types.ModuleType("deformops"))
    monkeypatch.setitem(sys.modules, "deformops.registry", registry)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    package = DeformOps("auto")
    assert package.report()["cuda"] == "deformops"
    value, locations, weights = make_inputs(dtype=torch.float32)
    package.run(value.bfloat16(), SHAPES, locations, weights)
    (_, shapes, starts, places, factors) = calls[0]
    assert shapes.tolist() == [list(shape) for shape in SHAPES]
    assert starts.tolist() == [0, 35, 47]
    assert places is locations
    assert factors.dtype == torch.bfloat16
    assert not package.takes(value)  # on a CPU grid_sample is always used
    assert DeformOps("reference").report()["cuda"] == "grid_sample (INTERNIMAGE_OPS=reference)"
