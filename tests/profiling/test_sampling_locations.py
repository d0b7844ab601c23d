import torch
from torch import nn

from src.models.internimage.backbone import InternImageBackbone
from src.models.internimage.dcnv3 import DCNv3
from src.models.internimage.dcnv4 import DCNv4
from src.profiling.sampling_locations import effective_receptive_field, follow_back, sampling_points

TINY = {"channels": 8, "depths": (2, 1, 1, 1), "groups": (1, 2, 4, 8)}


def backbone(**changes):
    torch.manual_seed(0)
    return InternImageBackbone(**(TINY | changes)).eval()


def test_a_fresh_layer_samples_its_neighbours_evenly():
    found = sampling_points(backbone(), torch.randn(1, 3, 64, 96))
    assert [s.name for s in found][:2] == ["levels.0.blocks.0.dcn", "levels.0.blocks.1.dcn"]
    assert [s.stride for s in found] == [4, 4, 8, 16, 32]
    first = found[0]
    assert first.positions.shape == (16, 24, 1, 9, 2)
    around = {tuple(p) for p in first.positions[5, 7, 0].tolist()}
    assert around == {(x, y) for x in (6.0, 7.0, 8.0) for y in (4.0, 5.0, 6.0)}
    torch.testing.assert_close(first.weights, torch.full((16, 24, 1, 9), 1 / 9))
    assert first.in_image()[0, 0, 0, 4].tolist() == [1.5, 1.5]


def test_offsets_and_their_scale_move_the_points():
    network = backbone(offset_scale=2.0, remove_center=True)
    for module in network.modules():
        if isinstance(module, DCNv3):
            nn.init.constant_(module.offset.bias, 0.25)
    first = sampling_points(network, torch.randn(1, 3, 64, 64))[0]
    assert first.positions.shape[3] == 8
    assert first.positions[5, 7, 0, 0].tolist() == [7 + 2 * (-1 + 0.25), 5 + 2 * (-1 + 0.25)]


def test_points_are_followed_through_layers():
    layers = sampling_points(backbone(), torch.randn(1, 3, 64, 64))[:2]
    points = follow_back(layers, (8, 8))
    assert points.shape == (81, 2)
    assert points.min() == (8 - 2 + 0.5) * 4 - 0.5
    assert points.max() == (8 + 2 + 0.5) * 4 - 0.5


def test_the_receptive_field_is_centred_and_grows_with_the_stage():
    network, images = backbone(), torch.randn(4, 3, 128, 128)
    fields = [effective_receptive_field(network, images, stage) for stage in (0, 2)]
    small, large = ((field > 0.02).sum() for field in fields)
    assert small < large
    assert all(field.shape == (128, 128) and field.max() == 1 for field in fields)
    row, column = divmod(int(fields[0].argmax()), 128)
    assert abs(row - 64) < 16
    assert abs(column - 64) < 16


def test_locations_of_dcnv4():
    network = backbone(core_op="DCNv4", offset_scale=2.0)
    for module in network.modules():
        if isinstance(module, DCNv4):
            module.offset_mask.bias.data = torch.arange(module.offset_mask.out_features) / 8
    first = sampling_points(network, torch.randn(1, 3, 64, 64))[0]
    assert first.positions[5, 7, 0, 1].tolist() == [7 + 2 * (-1 + 2 / 8), 5 + 2 * (0 + 3 / 8)]
    assert first.weights[5, 7, 0].tolist() == [(18 + point) / 8 for point in range(9)]
