"""SegmentationTask: losses, metrics at the original sizes, predictions, optimizer groups."""

from functools import partial

import pytest
import torch

from src.errors import UserError
from src.losses.mask_set import MaskSetLoss
from src.metrics.cityscapes import CityscapesMetric
from src.models import (
    FCNHead,
    InternImageBackbone,
    Mask2Former,
    Mask2FormerHead,
    Segmentor,
    UPerHead,
)
from src.models.segmentation import probability_strips
from src.tasks import SegmentationTask

CLASSES = 5
DEPTHS = (1, 1, 2, 1)
TINY = partial(
    Segmentor,
    backbone=partial(InternImageBackbone, channels=8, depths=DEPTHS, groups=(1, 2, 4, 8)),
    decode_head=partial(UPerHead, channels=16),
    auxiliary_head=partial(FCNHead, channels=8),
)
MASKS = {
    "network": partial(
        Mask2Former,
        backbone=TINY.keywords["backbone"],
        decode_head=partial(
            Mask2FormerHead,
            channels=16,
            num_queries=6,
            heads=4,
            encoder_layers=1,
            decoder_layers=2,
            encoder_hidden=16,
            decoder_hidden=16,
            norm_groups=4,
        ),
    ),
    "loss": partial(MaskSetLoss, num_points=50),
}


@pytest.fixture
def make_task():
    """A task with a built network that stores logged values in ``logged``."""

    def make(network=TINY, **settings):
        torch.manual_seed(0)
        task = SegmentationTask(CLASSES, network, **settings)
        task.configure_model()
        task.logged = {}
        task.log = lambda name, value, **_: task.logged.update({name: value})
        task.log_dict = lambda values, **_: task.logged.update(values)
        return task

    return make


@pytest.fixture
def eval_batch():
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 50), (70, 33), (40, 50)]
    views = [[torch.randn(3, 64, 64, generator=generator)] for _ in sizes]
    labels = [torch.randint(0, CLASSES, size, generator=generator) for size in sizes]
    labels[0][:10] = 255
    return {
        "views": views,
        "flipped": [False],
        "size": sizes,
        "label": labels,
        "path": ["a", "b", "c"],
    }


def evaluate(task, *batches):
    task.network.eval()
    with torch.no_grad():
        for batch in batches:
            task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    return {name: float(value) for name, value in task.logged.items()}


def test_training_loss_is_the_sum_of_both_heads(make_task):
    task = make_task()
    batch = {
        "image": torch.randn(2, 3, 32, 32),
        "label": torch.randint(0, CLASSES, (2, 32, 32)),
        "path": ["a", "b"],
    }
    loss = task.training_step(batch, 0)
    loss.backward()
    parts = task.logged["train/loss_decode"] + task.logged["train/loss_aux"]
    assert loss.item() == pytest.approx(parts.item())
    assert task.logged["train/loss_aux"].item() == pytest.approx(0.4 * 1.6, rel=0.3)


def test_a_batch_without_labels_trains_to_nothing(make_task):
    batch = {
        "image": torch.randn(2, 3, 32, 32),
        "label": torch.full((2, 32, 32), 255),
        "path": ["a", "b"],
    }
    for average in ("all", "labelled"):
        assert make_task(loss_average=average).training_step(batch, 0) == 0


def test_scores_do_not_depend_on_the_batch_size(make_task, eval_batch):
    together = evaluate(make_task(), eval_batch)
    singles = [
        {name: value if name == "flipped" else [value[index]] for name, value in eval_batch.items()}
        for index in range(3)
    ]
    alone = evaluate(make_task(), *singles)
    for name in ("val/mIoU", "val/mAcc", "val/aAcc"):
        assert 0 < alone[name] < 1
        # Ties may be resolved differently.
        assert together[name] == pytest.approx(alone[name], abs=1e-3)


def test_padding_images_are_ignored(make_task, eval_batch):
    is_padding = eval_batch | {"label": [torch.full_like(x, 255) for x in eval_batch["label"]]}
    assert evaluate(make_task(), eval_batch) | {"val/loss": 0.0} == evaluate(
        make_task(), eval_batch, is_padding
    ) | {"val/loss": 0.0}


def test_weights_of_instances_go_to_metrics_that_use_them(make_task, eval_batch):
    weighted = eval_batch | {
        "weight": [torch.ones_like(x, dtype=torch.float32) for x in eval_batch["label"]]
    }
    plain = evaluate(make_task(), weighted)
    assert plain == evaluate(make_task(), eval_batch)
    scores = evaluate(make_task(metric=CityscapesMetric), weighted)
    # With equal weights, instances are scored like all pixels.
    assert scores["val/iIoU"] == pytest.approx(scores["val/mIoU"])
    assert scores["val/mIoU"] == plain["val/mIoU"]


def test_per_class_metrics_after_an_evaluation(make_task, eval_batch):
    task = make_task()
    evaluate(task, eval_batch)
    assert task.class_scores["IoU"].shape == (CLASSES,)


def test_label_maps_have_the_sizes_of_the_images(make_task, eval_batch):
    task = make_task()
    task.network.eval()
    del eval_batch["label"]
    with torch.no_grad():
        outputs = task.predict_step(eval_batch, 0)
        whole = make_task(window_size=(64, 64))
        whole.network.eval()
        same = whole.predict_step(eval_batch, 0)  # one window covers everything
    assert outputs["path"] == ["a", "b", "c"]
    assert [tuple(m.shape) for m in outputs["label_map"]] == eval_batch["size"]
    assert all(m.dtype == torch.uint8 for m in outputs["label_map"])
    for one, other in zip(outputs["label_map"], same["label_map"], strict=True):
        assert (one == other).float().mean() > 0.999


def test_outputs_of_no_class_are_wrong_and_never_predicted(make_task, eval_batch):
    """The released weights for Cityscapes have 150 outputs for 19 classes."""

    def network(num_classes):
        segmentor = TINY(num_classes, num_outputs=CLASSES + 3)
        segmentor.decode_head.conv_seg.bias.data[CLASSES] = 1000.0  # the best of every pixel
        return segmentor

    task = make_task(network)
    batch = {"image": torch.randn(2, 3, 64, 64), "label": torch.full((2, 64, 64), CLASSES - 1)}
    assert task.training_step(batch, 0) > 100
    scores = evaluate(task, eval_batch)
    assert scores["val/aAcc"] == scores["val/mIoU"] == 0
    for label_map in task.predict_step(eval_batch, 0)["label_map"]:
        assert label_map.max() < CLASSES
    with pytest.raises(UserError, match="num_outputs of the segmentor is 4, but there are 5"):
        TINY(CLASSES, num_outputs=4)


def test_large_images_are_scored_in_strips_with_the_same_result(make_task, eval_batch, monkeypatch):
    whole = evaluate(make_task(), eval_batch)
    in_strips = partial(probability_strips, max_values=2000)
    monkeypatch.setattr("src.tasks.segmentation.probability_strips", in_strips)
    task = make_task()
    # Ties may be resolved differently.
    assert evaluate(task, eval_batch) == pytest.approx(whole, abs=1e-3)
    assert task.logged["val/loss"] == pytest.approx(whole["val/loss"])
    with torch.no_grad():
        label_maps = task.predict_step(eval_batch, 0)["label_map"]
    assert [tuple(m.shape) for m in label_maps] == eval_batch["size"]
    assert all(m.max() < CLASSES for m in label_maps)


def test_optimizer_groups_follow_the_official_rule(make_task):
    task = make_task(layer_decay=0.9)
    groups = {group["name"]: group for group in task.parameter_groups()}
    scales = {group["lr_scale"] for group in groups.values()}
    blocks = sum(DEPTHS)
    assert max(scales) == 1.0
    assert min(scales) == pytest.approx(0.9 ** (blocks + 1))
    place = {id(p): name for name, group in groups.items() for p in group["params"]}
    assert place[id(task.network.decode_head.conv_seg.weight)] == "decay"
    assert place[id(task.network.decode_head.bottleneck.bn.weight)] == "no_decay"
    stem = task.network.backbone.patch_embed.conv1
    assert place[id(stem.weight)] == f"decay_x{0.9 ** (blocks + 1):.6g}"
    assert len(place) == len(list(task.network.parameters()))
    assert {group["lr_scale"] for group in make_task().parameter_groups()} == {1.0}


def test_window_stride_is_two_thirds_by_default(make_task):
    window = make_task(window_size=(512, 1024)).window
    assert window.stride == (341, 683)
    with pytest.raises(UserError, match="window_stride needs"):
        make_task(window_stride=(1, 1))


def test_one_image_per_step_is_refused(make_task):
    batch = {"image": torch.randn(1, 3, 32, 32), "label": torch.zeros(1, 32, 32).long()}
    with pytest.raises(UserError, match=r"data\.batch_size"):
        make_task().training_step(batch, 0)


def test_settings_of_other_tasks_are_refused():
    with pytest.raises(UserError, match="dcn_lr_scale"):
        SegmentationTask(CLASSES, TINY, layer_decay=0.9, dcn_lr_scale=0.1)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_mask2former_trains_with_the_losses_of_all_layers(make_task, unlabelled):
    task = make_task(**MASKS)
    label = torch.randint(0, CLASSES, (2, 32, 32))
    if unlabelled:
        label[:] = 255
    loss = task.training_step({"image": torch.randn(2, 3, 32, 32), "label": label}, 0)
    loss.backward()
    parts = {k: v for k, v in task.logged.items() if k != "train/loss"}
    assert len(parts) == 3 * 3
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()))
    assert all(p.grad.isfinite().all() for p in task.network.parameters())


def test_mask2former_trains_in_mixed_precision(make_task):
    task = make_task(**MASKS)
    batch = {"image": torch.randn(2, 3, 32, 32), "label": torch.randint(0, CLASSES, (2, 32, 32))}
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.training_step(batch, 0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in task.network.parameters())


def test_mask2former_evaluates_and_predicts(make_task, eval_batch):
    scores = evaluate(make_task(**MASKS), eval_batch)
    assert 0 < scores["val/mIoU"] < 1
    task = make_task(**MASKS)
    task.network.eval()
    flipped = eval_batch | {"flipped": [False, True]}
    flipped["views"] = [[view, view.flip(-1)] for (view,) in eval_batch["views"]]
    with torch.no_grad():
        outputs = task.predict_step(flipped, 0)
    assert [tuple(m.shape) for m in outputs["label_map"]] == eval_batch["size"]


def test_queries_and_embeddings_have_the_learning_rate_of_the_stem(make_task):
    task = make_task(**MASKS, layer_decay=0.9)
    place = {id(p): g["lr_scale"] for g in task.parameter_groups() for p in g["params"]}
    head, slowest = task.network.decode_head, pytest.approx(0.9 ** (sum(DEPTHS) + 1))
    for module in (head.query_feat, head.query_embed, head.level_embed, head.cls_embed):
        assert place[id(module.weight)] == slowest
    assert place[id(head.pixel_decoder.level_encoding.weight)] == 1.0


@pytest.mark.parametrize("changes", [{"loss": None}, {"network": TINY}])
def test_a_loss_of_another_network_is_refused(make_task, changes):
    batch = {"image": torch.randn(2, 3, 32, 32), "label": torch.zeros(2, 32, 32).long()}
    with pytest.raises(UserError, match="Mask2Former"):
        make_task(**(MASKS | changes)).training_step(batch, 0)
