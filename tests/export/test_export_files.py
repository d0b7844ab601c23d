"""Exported files compute what PyTorch computes, at any batch and size, with standard operators."""

from functools import partial

import onnx
import pytest
import torch
from torch import nn

from src.errors import UserError
from src.export.compare_graphs import compare_graph, runner
from src.export.differences import TOLERANCE
from src.export.files import OPSETS, trace, write_compiled, write_onnx, write_program
from src.export.graphs import Graph, graphs_of
from src.models.detection import CascadeMaskRCNN, MaskRCNN
from src.models.detection.rcnn.graphs import align
from src.models.detection.rcnn.roi_align import align_on_pyramid
from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.classifier import InternImage
from src.models.internimage.dcnv3 import DCNv3
from src.models.segmentation import Segmentor
from src.models.segmentation.fcn import FCNHead
from src.models.segmentation.segformer import SegFormerHead
from src.models.segmentation.upernet import UPerHead
from src.ops import dcnv3

TINY = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}


def lively(network):
    """Initial values give zero offsets; these also sample between pixels and outside the image."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.weight, std=0.1)
            nn.init.normal_(module.offset.bias, std=2.0)
            nn.init.normal_(module.mask.weight, std=0.1)
    return network


def classifier(**changes):
    return lively(InternImage(num_classes=5, **(TINY | changes)))


def segmentor():
    return lively(
        Segmentor(
            4,
            partial(InternImageBackbone, **TINY),
            partial(UPerHead, channels=16),
            partial(FCNHead, channels=8),
        )
    )


def segformer():
    """More outputs than classes, as in the released weights for Cityscapes."""
    network = Segmentor(
        4,
        partial(InternImageBackbone, **TINY),
        partial(SegFormerHead, channels=16),
        auxiliary_head=None,
        num_outputs=7,
    )
    torch.manual_seed(0)
    nn.init.normal_(network.decode_head.conv_seg.weight)  # so that other outputs are best, too
    return lively(network)


def written(graph, folder, dcn="deformconv"):
    return write_onnx(graph, trace(graph), folder, dcn)


def operators(path):
    """Names of the operators of a file."""
    return {node.op_type for node in onnx.load(path).graph.node}


def images(*shape):
    return {"image": torch.randn(*shape, generator=torch.Generator().manual_seed(1))}


def largest(found):
    return max(value for name, value in found.items() if name != "label_map")


def test_a_classifier_at_other_batches_and_sizes(tmp_path):
    (graph,) = graphs_of(classifier())
    run = runner(written(graph, tmp_path))
    for shape in ((1, 3, 64, 64), (3, 3, 96, 40), (2, 3, 75, 133)):
        found = compare_graph(graph, run, images(*shape))
        assert found.keys() == {"logits", "probabilities"}
        assert largest(found) < TOLERANCE


def test_a_segmentor_at_sizes_that_pooling_does_not_divide(tmp_path):
    (graph,) = graphs_of(segmentor())
    path = written(graph, tmp_path)
    run = runner(path)
    for shape in ((1, 3, 64, 64), (2, 3, 256, 160), (1, 3, 250, 171)):
        found = compare_graph(graph, run, images(*shape))
        assert largest(found) < TOLERANCE
        assert found["label_map"] < 1e-3  # ties may break differently
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert "DeformConv" in operators(path)
    assert "GridSample" not in operators(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"remove_center": True, "offset_scale": 2.0, "center_feature_scale": True},
        {"kernel_size": 5, "dw_kernel_size": 3, "post_norm": True, "layer_scale": 0.5},
        {"use_clip_projector": True, "res_post_norm": True, "level2_post_norm_block_ids": (0,)},
        {"core_op": "DCNv4", "dw_kernel_size": 3, "offset_scale": 0.5, "dcn_output_bias": False},
        {"core_op": "DCNv4", "remove_center": True, "mlp_fc2_bias": False},
    ],
)
def test_every_variant_of_the_block(changes, tmp_path):
    (graph,) = graphs_of(classifier(**changes))
    run = runner(written(graph, tmp_path))
    assert largest(compare_graph(graph, run, images(3, 3, 128, 64))) < TOLERANCE


class Operator(nn.Module):
    """The operator alone, with windows that the networks do not use."""

    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, values, offset, mask):
        return dcnv3(values, offset, mask, **self.window)


@pytest.mark.parametrize(
    ("window", "points", "out"),
    [
        ({"groups": 2, "stride": 2, "mask_softmax": True}, 9, (6, 8)),
        ({"groups": 1, "kernel_size": (1, 3), "padding": (0, 1), "dilation": (1, 2)}, 3, (12, 13)),
        ({"groups": 4, "remove_center": True, "offset_scale": 0.5}, 8, (12, 15)),
        (
            {"groups": 2, "kernel_size": 5, "padding": 2, "remove_center": True}
            | {"offset_scale": 2.0, "mask_softmax": True},
            24,
            (12, 15),
        ),
    ],
)
def test_the_operator_with_any_window(window, points, out, tmp_path):
    generator = torch.Generator().manual_seed(0)
    groups = window["groups"]
    inputs = {
        "values": torch.randn(2, 12, 15, 8, generator=generator),
        "offset": 4 * torch.randn(2, *out, groups * points * 2, generator=generator),
        "mask": torch.randn(2, *out, groups * points, generator=generator),
    }
    graph = Graph("op", Operator(window).eval(), inputs, {n: {} for n in inputs}, ("result",))
    program = trace(graph)
    for dcn in OPSETS:
        path = write_onnx(graph, program, tmp_path, dcn)
        assert compare_graph(graph, runner(path), inputs)["result"] < 2e-5
        assert ("DeformConv" in operators(path)) == (dcn == "deformconv")
        assert ("GridSample" in operators(path)) == (dcn == "gridsample")


def pyramid_of(batch, height, width, channels=16):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, channels, height // s, width // s, generator=generator)
        for s in (4, 8, 16, 32)
    ]


def regions(batch, number):
    generator = torch.Generator().manual_seed(3)
    corner = 60 * torch.rand(number, 2, generator=generator)
    side = 600 * torch.rand(number, 2, generator=generator) ** 2 + 5
    image = torch.randint(0, batch, (number, 1), generator=generator).float()
    return torch.cat([image, corner, corner + side], dim=1)


def test_boxes_shrunk_to_points_add_nothing():
    maps, rois = pyramid_of(2, 256, 320), regions(2, 50)
    expected = align_on_pyramid(maps, rois, 7)
    torch.testing.assert_close(align(tuple(maps), rois, 7), expected, rtol=0, atol=1e-6)


def detector(kind):
    return lively(kind(3, partial(InternImageBackbone, **TINY), channels=16, fc_channels=24))


@pytest.mark.parametrize("kind", [MaskRCNN, pytest.param(CascadeMaskRCNN, marks=pytest.mark.slow)])
def test_a_detector_in_parts(kind, tmp_path):
    graphs = {graph.name: graph for graph in graphs_of(detector(kind))}
    stages = {"boxes"} if kind is MaskRCNN else {"boxes_1", "boxes_2", "boxes_3"}
    assert graphs.keys() == {"backbone", "masks"} | stages
    backbone = runner(written(graphs["backbone"], tmp_path))
    for shape in ((1, 3, 64, 96), (2, 3, 128, 64)):
        found = compare_graph(graphs["backbone"], backbone, images(*shape))
        assert found.keys() == {"p2", "p3", "p4", "p5", "objectness", "offsets", "anchors"}
        assert largest(found) < TOLERANCE
    maps = dict(zip(("p2", "p3", "p4", "p5"), pyramid_of(3, 256, 320), strict=True))
    inputs = {**maps, "rois": regions(3, 40), "labels": torch.arange(40) % 3}
    for name in (*sorted(stages), "masks"):
        graph = graphs[name]
        fitting = {key: inputs[key] for key in graph.inputs}
        assert largest(compare_graph(graph, runner(written(graph, tmp_path)), fitting)) < TOLERANCE


def test_a_program_of_torch_export_keeps_the_compiled_operator(tmp_path):
    (graph,) = graphs_of(classifier())
    program = trace(graph)
    run = runner(write_program(graph, program, tmp_path))
    assert largest(compare_graph(graph, run, images(3, 3, 80, 48))) < TOLERANCE
    assert any("dcnv3" in str(node.target) for node in program.graph.nodes)


def test_a_program_of_a_detector_at_other_sizes(tmp_path):
    graph, *_ = graphs_of(detector(MaskRCNN))
    run = runner(write_program(graph, trace(graph), tmp_path))
    for shape in ((1, 3, 96, 96), (2, 3, 128, 224), (1, 3, 256, 192)):
        assert largest(compare_graph(graph, run, images(*shape))) < TOLERANCE
    with pytest.raises(UserError, match=r"backbone\.pt2 .* inputs of the size \(1, 3, 64, 64\)"):
        run(images(1, 3, 64, 64))


@pytest.mark.slow
def test_machine_code_of_aotinductor(tmp_path):
    (graph,) = graphs_of(classifier())
    run = runner(write_compiled(graph, trace(graph), tmp_path))
    assert largest(compare_graph(graph, run, images(3, 3, 80, 48))) < TOLERANCE
