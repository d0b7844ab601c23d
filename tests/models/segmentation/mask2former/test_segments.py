"""Panoptic segments and instances from classes and masks of queries."""

import pytest
import torch

from src.models.segmentation.mask2former.segments import instances, panoptic_segments

SIZE = (8, 8)
SIZES = (SIZE, SIZE)


def queries(*given, num_classes=3):
    """Class and mask logits of queries ``(label, probability, rows)`` with sharp masks."""
    classes = torch.full((len(given), num_classes + 1), 0.0)
    masks = torch.full((len(given), *SIZE), -20.0)
    for number, (label, probability, rows) in enumerate(given):
        rest = (1 - probability) / num_classes
        classes[number] = torch.tensor(rest).log()
        classes[number, label] = torch.tensor(probability).log()
        masks[number, rows] = 20.0
    return classes, masks


def test_things_are_separate_and_other_classes_are_one():
    given = queries((0, 0.9, slice(0, 2)), (0, 0.95, slice(2, 4)), (1, 0.9, slice(4, 8)))
    found = panoptic_segments(*given, SIZES, things={0})
    assert found.ids[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 3, 3]
    assert found.labels == [0, 0, 1]
    assert found.scores == pytest.approx([0.9, 0.95, 0.9])
    found = panoptic_segments(*given, SIZES, things=set())
    assert found.ids[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert found.labels == [0, 1]


def test_weak_queries_and_no_object_are_left_out():
    given = queries((0, 0.79, slice(0, 4)), (3, 0.99, slice(0, 8)), (1, 0.81, slice(4, 8)))
    found = panoptic_segments(*given, SIZES, things={0, 1})
    assert found.labels == [1]
    assert found.ids[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    nothing = panoptic_segments(*queries((0, 0.5, slice(0, 8))), SIZES, things={0})
    assert nothing.labels == []
    assert not nothing.ids.any()


def test_a_mask_that_loses_too_many_pixels_is_dropped():
    # The first mask keeps 4 of its 8 rows; where it is dropped, nobody has its pixels.
    given = queries((0, 0.85, slice(0, 8)), (1, 0.95, slice(4, 8)))
    found = panoptic_segments(*given, SIZES, things={0, 1})
    assert found.labels == [1]
    assert found.ids[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    found = panoptic_segments(*given, SIZES, things={0, 1}, overlap_threshold=0.5)
    assert found.labels == [0, 1]
    assert found.ids[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_pixels_outside_of_all_masks_count_for_the_query_that_is_nearest():
    # As in the code of Mask2Former: the first mask keeps one of its two pixels, and is the most
    # probable one in the two pixels that belong to no mask.
    classes = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]).log()
    masks = torch.tensor([[[1.0, 1.0, -1.0, -1.0]], [[-9.0, 2.0, -9.0, -9.0]]])
    found = panoptic_segments(classes, masks, ((1, 4), (1, 4)), things={0, 1})
    assert found.labels == [0, 1]
    assert found.ids.tolist() == [[1, 2, 0, 0]]


def test_instances_are_the_best_pairs():
    given = queries((0, 0.6, slice(0, 2)), (1, 0.9, slice(2, 8)), (2, 0.97, slice(0, 1)))
    found = instances(*given, SIZES, things={0, 1}, max_instances=3)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.boxes.tolist() == [[0, 2, 8, 8], [0, 0, 8, 2]]
    assert found.masks is not None
    assert found.masks.sum((1, 2)).tolist() == [48, 16]


@pytest.mark.parametrize("sizes", [SIZES, ((32, 32), (20, 30))])
def test_there_are_no_instances_without_counted_classes(sizes):
    given = queries((0, 0.6, slice(0, 2)), (1, 0.9, slice(2, 8)))
    found = instances(*given, sizes, things=set())
    assert found.labels.tolist() == []
    assert found.boxes.shape == (0, 4)
    assert found.masks is not None
    assert found.masks.shape == (0, *sizes[1])


def test_scores_fall_with_uncertain_masks():
    classes, masks = queries((0, 0.9, slice(0, 4)))
    sure = instances(classes, masks, SIZES, {0}, 1)
    unsure = instances(classes, masks.clamp(max=0.5), SIZES, {0}, 1)
    assert unsure.scores.item() == pytest.approx(sure.scores.item() * torch.tensor(0.5).sigmoid())


def test_masks_get_the_size_of_the_image():
    classes, masks = queries((0, 0.9, slice(0, 4)))
    found = panoptic_segments(classes, masks, ((32, 32), (20, 30)), {0})
    assert found.ids.shape == (20, 30)
    assert found.ids[:, 0].tolist() == [1] * 10 + [0] * 10
