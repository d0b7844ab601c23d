"""What the parts of DINO promise, on cases small enough to check by hand, and on odd images."""

from functools import partial

import pytest
import torch

from src.errors import UserError
from src.losses.box_set import focal_loss, hungarian_match, relative_boxes
from src.losses.detection import mean_over_ranks
from src.models import CBDINO, DINO, CBInternImageBackbone, InternImageBackbone
from src.models.detection.dino.decoder import inverse_sigmoid
from src.models.detection.dino.denoising import Denoising
from src.models.detection.dino.head import LabelEmbedding
from src.models.detection.dino.padding import find_padding
from src.models.detection.tta import fuse, mirror
from src.models.layers.transformer import FeedForward, SplitFeedForward
from src.models.necks.channel_mapper import ChannelMapper
from src.models.weights import load_official, to_official
from src.types import Detections
from tests.official import assert_same_network

BACKBONE = partial(
    InternImageBackbone,
    channels=8,
    depths=(1, 1, 1, 1),
    groups=(1, 1, 2, 4),
    out_indices=(1, 2, 3),
)
SMALL = {
    "num_classes": 3,
    "channels": 64,
    "num_queries": 20,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "heads": 4,
    "hidden_channels": 32,
    "denoising_queries": 10,
    "max_detections": 15,
}
MAKERS = {
    "dino": partial(DINO, backbone=BACKBONE, **SMALL),
    "split": partial(DINO, backbone=BACKBONE, ffn_parts=4, **SMALL),
    "cbdino": partial(CBDINO, backbone=partial(CBInternImageBackbone, BACKBONE), **SMALL),
}


@pytest.fixture(params=MAKERS)
def detector(request):
    torch.manual_seed(0)
    return MAKERS[request.param]()


def target(boxes, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
    }


def learn(detector, image, sizes, targets):
    """Sum of the losses; every parameter gets a gradient and all are finite."""
    losses, metrics = detector(image, sizes, targets=targets)
    assert not metrics
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return total.item()


def test_boxes_relative_to_the_image_and_back():
    boxes = torch.tensor([[10.0, 20, 30, 60]])
    relative = relative_boxes(boxes, (80, 100))
    torch.testing.assert_close(relative, torch.tensor([[0.2, 0.5, 0.2, 0.5]]))
    torch.testing.assert_close(inverse_sigmoid(relative).sigmoid(), relative)
    assert inverse_sigmoid(torch.tensor([0.0, 1.0])).isfinite().all()


def test_matching_is_the_best_for_all_objects_together():
    logits = torch.full((1, 3, 2), -3.0)
    logits[0, 1, 0] = logits[0, 2, 1] = 3.0
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]]])
    objects = target([[70, 70, 90, 90], [10, 10, 30, 30]], [1, 0])
    (query, found), *_ = hungarian_match(logits, boxes, [objects], [(100, 100)])
    assert dict(zip(query.tolist(), found.tolist(), strict=True)) == {1: 1, 2: 0}
    (query, _), *_ = hungarian_match(logits[:, :1], boxes[:, :1], [objects], [(100, 100)])
    assert query.tolist() == [0]  # one query cannot find two objects


def test_focal_loss_by_hand():
    logits = torch.zeros(1, 1, 2)
    loss = focal_loss(logits, torch.tensor([[1]]), 2.0)
    entropy = torch.tensor(2.0).log()
    assert float(loss) == pytest.approx(float((0.25 + 0.75) * 0.25 * entropy / 2), rel=1e-5)
    nothing = focal_loss(torch.full((1, 4, 2), -9.0), torch.full((1, 4), 2), 1.0)
    assert float(nothing) == pytest.approx(0, abs=1e-6)
    assert mean_over_ranks(0, torch.device("cpu")) == 1


def test_padding_is_known_on_every_map():
    maps = [torch.zeros(2, 1, 4, 8), torch.zeros(2, 1, 2, 4)]
    padding = find_padding((32, 64), [(32, 64), (16, 48)], maps)
    assert not padding.masks[0][0].any()
    assert padding.masks[0][1].sum() == 4 * 8 - 2 * 6
    torch.testing.assert_close(padding.ratios[1], torch.tensor([[0.75, 0.5]] * 2))
    first = padding.references()[1, 0]  # first pixel of the first map, on both maps
    torch.testing.assert_close(first, torch.tensor([[1 / 16, 1 / 8]] * 2))
    start = padding.initial_boxes()[1]
    torch.testing.assert_close(start[0], torch.tensor([1 / 12, 1 / 4, 0.05, 0.05]))
    torch.testing.assert_close(start[32], torch.tensor([1 / 6, 1 / 2, 0.1, 0.1]))


def test_channel_mapper_halves_the_last_map_for_the_extra_level():
    neck = ChannelMapper([8, 16, 24], 64, num_levels=5)
    maps = [torch.randn(1, 8, 12, 8), torch.randn(1, 16, 6, 4), torch.randn(1, 24, 3, 2)]
    assert [tuple(x.shape[1:]) for x in neck(maps)] == [
        (64, 12, 8), (64, 6, 4), (64, 3, 2), (64, 2, 1), (64, 1, 1),
    ]  # fmt: skip
    assert neck.extra_convs[0].conv.in_channels == 24
    with pytest.raises(UserError, match="a multiple of 32 above 32, got 48"):
        ChannelMapper([8], 48)


def test_split_feed_forward_layer_is_the_usual_one():
    usual, split = FeedForward(8, 16), SplitFeedForward(8, 16, 4)
    with torch.no_grad():
        usual.fc1.weight.copy_(torch.cat([part.weight for part in split.fc1]))
        usual.fc1.bias.copy_(torch.cat([part.bias for part in split.fc1]))
        usual.fc2.weight.copy_(torch.cat([part.weight for part in split.fc2], dim=1))
        split.fc2_bias.copy_(torch.randn(8))
        usual.fc2.bias.copy_(split.fc2_bias)
    x = torch.randn(3, 8)
    torch.testing.assert_close(split(x), usual(x))


def test_denoising_queries_stay_among_themselves():
    targets = [target([[0, 0, 10, 10], [5, 5, 9, 9]], [0, 1]), target([[1, 1, 4, 4]], [2])]
    boxes = [relative_boxes(t["boxes"], (20, 20)) for t in targets]
    denoising = Denoising(3, num_queries=5)
    queries, plan = denoising(targets, boxes, LabelEmbedding(3, 8), num_matching=4)
    assert (plan.groups, plan.width, plan.size) == (2, 2, 8)
    mask = queries.attn_mask[0]
    assert mask.shape == (12, 12)
    assert mask[:4, :4].all()
    assert not mask[:4, 4:8].any()
    assert not mask[8:, :8].any()
    assert mask[:, 8:].all()
    assert plan.positive(0, torch.device("cpu"))[0].tolist() == [0, 1, 4, 5]
    assert plan.positive(1, torch.device("cpu"))[0].tolist() == [0, 4]
    assert not queries.content[1, 1].any()  # the second image has one object
    assert queries.content[1, 2].any()
    shift = (queries.box_logits.sigmoid()[0, :2, :2] - boxes[0][:, :2]).abs()
    assert (shift <= boxes[0][:, 2:] / 2 + 1e-3).all()


@pytest.mark.parametrize("count", [0, 1, 300])
def test_no_object_and_more_objects_than_queries(detector, count):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 8], dim=1).tolist()
    targets = [target(boxes, [i % 3 for i in range(count)]), target([], [])]
    total = learn(detector, torch.randn(2, 3, 64, 96), [(64, 96), (60, 64)], targets)
    assert total == pytest.approx(total)  # no NaN


@pytest.mark.parametrize("size", [(20, 31), (1, 1)])
def test_images_with_fewer_pixels_than_queries(detector, size):
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, : size[0], : size[1]] = 1
    learn(detector, image, [size], [target([[0, 0, size[1], size[0]]], [1])])
    (found,) = detector.eval()(image, [size], [(200, 310)])
    assert len(found.scores) == 15
    assert found.scores.diff().max() <= 0
    assert found.boxes[:, 0::2].max() <= 310
    assert found.boxes.min() >= 0


def test_images_of_a_batch_do_not_see_each_other(detector):
    detector.eval()
    image = torch.randn(2, 3, 64, 96)
    image[1, :, 32:] = 0
    image[1, :, :, 64:] = 0
    sizes = [(64, 96), (32, 64)]
    together = detector(image, sizes)
    alone = detector(image[:1], sizes[:1])
    assert_same_network(together[0].boxes, alone[0].boxes)
    assert_same_network(together[0].scores, alone[0].scores)


def test_composite_losses_of_a_batch_are_those_of_its_images():
    """With equal numbers of objects, the loss of two images is the mean of their losses."""
    torch.manual_seed(0)
    detector = MAKERS["cbdino"]().eval()
    image = torch.randn(2, 3, 64, 64)
    targets = [target([[5, 5, 30, 30]], [0]), target([[20, 10, 50, 60]], [2])]
    sizes = [(64, 64)] * 2
    together = detector(image, sizes, targets=targets).losses
    alone = [detector(image[i : i + 1], sizes[:1], targets=[targets[i]]).losses for i in range(2)]
    assert len(together) == 2 * 3 * (2 * 2 + 1)
    for name in ("loss_cls1", "d0.loss_bbox0_w0.5", "interm_loss_iou1"):
        mean = (alone[0][name] + alone[1][name]) / 2
        assert_same_network(together[name], mean)


def test_weights_come_back_and_other_classes_start_fresh(detector):
    official = to_official(detector)
    kind = type(detector)
    other = {DINO: MAKERS["dino"], CBDINO: MAKERS["cbdino"]}[kind]
    if any("fc1_0" in name for name in official):
        other = MAKERS["split"]
    report = load_official(other(), official)
    assert not report.fresh
    assert not report.unused
    report = load_official(other(num_classes=5), official)
    fresh = {name.split(".")[1] for name in report.fresh}
    assert fresh == {"cls_branches", "label_embedding"}


def test_reset_parameters_rebuilds_the_start(detector):
    torch.manual_seed(1)
    for module in detector.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    head = detector.bbox_head
    assert not head.reg_branches[0][4].weight.any()
    assert head.cls_branches[0].bias.sigmoid()[0].item() == pytest.approx(0.01)
    assert head.transformer.level_embeds.std() > 0.5


def test_16_bit(detector):
    targets = [target([[5, 5, 30, 30]], [0])]
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(torch.randn(1, 3, 64, 64), [(64, 64)], targets=targets).losses
        (found,) = detector.eval()(torch.randn(1, 3, 64, 64), [(64, 64)])
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert found.boxes.dtype == torch.float32


def test_fused_boxes_are_weighted_means_and_unconfirmed_boxes_get_lower_scores():
    def seen(boxes, scores, labels):
        boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        return Detections(boxes, torch.tensor(scores), torch.tensor(labels, dtype=torch.long))

    one = seen([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.5], [0, 0])
    two = seen([[0, 0, 10, 12], [0, 0, 10, 10]], [0.6, 0.2], [0, 1])
    fused = fuse([one, two])
    assert fused.labels.tolist() == [0, 0]
    assert fused.scores.tolist() == pytest.approx([0.75, 0.25])
    assert fused.boxes[0].tolist() == pytest.approx([0, 0, 10, 10.8])
    same = fuse([one])
    torch.testing.assert_close(same.boxes, one.boxes)
    torch.testing.assert_close(same.scores, one.scores)
    nothing = fuse([seen([], [], []), seen([], [], [])])
    assert nothing.boxes.shape == (0, 4)
    mirrored = mirror(one, 100)
    assert mirrored.boxes[1].tolist() == [40, 50, 50, 60]
