"""DINO, CB-DINO and Mask2Former as files: what PyTorch computes, at any batch and size.

Weights are a formula of the parameter name, with offsets of several pixels. All files are run at
other batches and sizes than they were traced with.
"""

from functools import partial

import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from src.errors import UserError
from src.export.compare_graphs import compare_graph, runner
from src.export.differences import TOLERANCE
from src.export.files import OPSETS, trace, write_onnx, write_program
from src.export.graphs import Graph, graphs_of
from src.export.raw_card import raw_section
from src.models import (
    CBDINO,
    DINO,
    CBInternImageBackbone,
    InternImageBackbone,
    Mask2Former,
    Mask2FormerHead,
)
from src.models.detection import Detector
from src.models.detection.dino.graphs import ExportedDINO
from src.models.detection.dino.padding import find_padding, same_padding
from src.models.internimage.dcnv3 import DCNv3
from src.models.layers.deformable_attention import MultiScaleDeformableAttention
from src.ops import ms_deform_attn
from tests.models.conftest import name_weight

BACKBONE = partial(
    InternImageBackbone, channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), layer_scale=1.0
)
SMALL = {
    "num_classes": 5,
    "channels": 64,
    "num_queries": 30,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "hidden_channels": 64,
}
HEAD = partial(
    Mask2FormerHead,
    channels=64,
    num_queries=20,
    heads=8,
    encoder_layers=1,
    decoder_layers=3,
    encoder_hidden=64,
    decoder_hidden=64,
)
STAGES = partial(BACKBONE, out_indices=(1, 2, 3))
NETWORKS = {
    "dino": partial(DINO, backbone=STAGES, **SMALL),
    "cbdino": partial(CBDINO, backbone=partial(CBInternImageBackbone, STAGES), **SMALL),
    "mask2former": partial(Mask2Former, 12, BACKBONE, HEAD),
}
SIZES = ((1, 3, 96, 128), (3, 3, 75, 133))
slow = pytest.mark.slow


def filled(name):
    """A network with formula weights that looks several pixels far."""
    network = NETWORKS[name]()
    state = {k: name_weight(k, list(v.shape)) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    for module in network.modules():
        if isinstance(module, DCNv3):
            module.offset.bias.data *= 20
        if isinstance(module, MultiScaleDeformableAttention):
            module.sampling_offsets.bias.data *= 40
    return network


def graph_of(name):
    (graph,) = graphs_of(filled(name))
    return graph


def images(*shape):
    return {"image": torch.randn(*shape, generator=torch.Generator().manual_seed(1))}


def assert_equal(graph, run):
    """Compare at all sizes.

    A label may flip where two classes are equal up to rounding. Proposals may differ among pixels
    of padding, which have equal scores; scores and boxes are compared with the same proposals.
    """
    for shape in SIZES:
        found = compare_graph(graph, run, images(*shape))
        assert found.keys() == set(graph.outputs)
        assert found.pop("label_map", 0.0) < 1e-3
        found.pop("proposals", None)
        assert max(found.values()) < TOLERANCE


@slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_and_torch_export(name, tmp_path):
    graph = graph_of(name)
    program = trace(graph)
    assert any("ms_deform_attn" in str(node.target) for node in program.graph.nodes)
    assert_equal(graph, runner(write_program(graph, program, tmp_path)))
    path = write_onnx(graph, program, tmp_path)
    assert_equal(graph, runner(path))
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert not any(node.op_type == "GridSample" for node in model.graph.node)


@slow
def test_images_with_fewer_pixels_than_queries(tmp_path):
    network = DINO(backbone=STAGES, **(SMALL | {"num_queries": 200, "encoder_layers": 0}))
    (graph,) = graphs_of(network)
    run = runner(write_onnx(graph, trace(graph), tmp_path))
    logits, boxes, proposals, scores = run(images(2, 3, 70, 66))
    assert proposals.unique().numel() == 12 * 12 + 6 * 6 + 3 * 3 + 2 * 2
    assert logits.shape == (2, 193, 5)
    assert boxes.shape == (2, 193, 4)
    assert scores.shape == proposals.shape == (2, 193)


class Attention(nn.Module):
    """The operator alone on two maps whose sizes are those of other inputs."""

    def forward(self, value, fine, coarse, locations, weights):
        sizes = [(x.shape[0], x.shape[1]) for x in (fine, coarse)]
        return ms_deform_attn(value, sizes, locations, weights)


def attention_inputs(batch, queries, fine, coarse):
    generator = torch.Generator().manual_seed(0)
    pixels = fine[0] * fine[1] + coarse[0] * coarse[1]
    return {
        "value": torch.randn(batch, pixels, 3, 4, generator=generator),
        "fine": torch.zeros(fine),
        "coarse": torch.zeros(coarse),
        # A quarter of the places is outside the maps.
        "locations": 1.4 * torch.rand(batch, queries, 3, 2, 5, 2, generator=generator) - 0.2,
        "weights": torch.randn(batch, queries, 3, 2, 5, generator=generator),
    }


def test_the_operator_at_other_batches_and_maps(tmp_path):
    inputs = attention_inputs(2, 6, (5, 7), (3, 4))
    free = Dim.DYNAMIC
    sides = {0: free, 1: free}
    dynamic = {
        "value": sides,
        "fine": sides,
        "coarse": sides,
        "locations": sides,
        "weights": sides,
    }
    graph = Graph("op", Attention().eval(), inputs, dynamic, ("result",))
    program = trace(graph)
    for dcn in OPSETS:
        run = runner(write_onnx(graph, program, tmp_path, dcn))
        for other in (inputs, attention_inputs(3, 9, (4, 6), (7, 2))):
            assert compare_graph(graph, run, other)["result"] < TOLERANCE


@pytest.mark.parametrize("size", [(96, 128), (65, 100)])
def test_padding_of_images_of_one_size(size):
    maps = [torch.zeros(2, 8, 12, 16), torch.zeros(2, 8, 6, 8), torch.zeros(2, 8, 3, 4)]
    ours, found = same_padding((96, 128), size, maps), find_padding((96, 128), [size] * 2, maps)
    assert ours.sizes == found.sizes
    assert torch.equal(ours.tokens, found.tokens)
    assert torch.equal(ours.ratios, found.ratios)


@torch.no_grad()
def test_outputs_lead_to_the_detections_of_the_network():
    """The few lines of docs/export.md."""
    network = filled("dino").eval()
    height, width = 70, 100  # not multiples of 32, to which prediction pads
    image = images(1, 3, height, width)["image"]
    logits, boxes, *_ = (x[0] for x in ExportedDINO(network)(image))
    scores, index = logits.sigmoid().flatten().topk(min(300, logits.numel()))
    query, labels = index // logits.shape[1], index % logits.shape[1]
    centre, size = boxes[query].split(2, dim=1)
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    corners = corners.clamp(0, 1) * torch.tensor([width, height, width, height])
    padded = functional.pad(image, (0, -width % 32, 0, -height % 32))
    (expected,) = network(padded, [(height, width)])
    assert torch.equal(labels, expected.labels)
    torch.testing.assert_close(scores, expected.scores)
    torch.testing.assert_close(corners, expected.boxes, rtol=0, atol=1e-4)


@torch.no_grad()
def test_another_choice_of_equal_proposals_is_followed():
    graph = graph_of("dino")
    inputs = images(1, 3, 96, 128)
    own = graph.module(**inputs)
    swapped = own[2].clone()
    swapped[:, [3, 4]] = own[2][:, [4, 3]]

    def run(given):
        logits, boxes, proposals, _ = graph.module(**given, proposals=swapped)
        return [logits, boxes, proposals, own[3]]

    found = compare_graph(graph, run, inputs)
    assert found["proposals"] == pytest.approx(2 / 30)
    assert found["logits"] == found["boxes"] == found["proposal_scores"] == 0.0
    assert float((run(inputs)[0] - own[0]).abs().max()) > TOLERANCE  # hence the following


@pytest.mark.parametrize("name", NETWORKS)
def test_the_card_describes_the_outputs(name, tmp_path):
    graph = graph_of(name)
    text = raw_section([graph], [])
    for output in graph.outputs:
        assert f"| `{output}` | out |" in text


@pytest.mark.parametrize(("formats", "words"), [(["pt2"], "dcnv3_ops"), (["onnx"], "ONNX files")])
def test_the_card_is_about_the_formats_that_are_written(formats, words, tmp_path):
    graph = graph_of("dino")
    files = [tmp_path / f"{graph.name}.{name}" for name in formats]
    for file in files:
        file.touch()
    text = raw_section([graph], files)
    others = {"dcnv3_ops", "ONNX files", "aoti"} - {words}
    assert words in text
    assert not any(other in text for other in others)


@pytest.mark.parametrize("network", [nn.Linear(2, 2), Detector()])
def test_networks_without_graphs_are_refused(network):
    with pytest.raises(UserError, match=r"cannot be exported: it does not define export_graphs"):
        graphs_of(network)
