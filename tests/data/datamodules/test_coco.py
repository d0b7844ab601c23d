"""COCO data: what is read, what is left out, and what is said about broken files."""

import json
import logging

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from src.data.datamodules.coco import COCODataModule
from src.data.formats.coco_json import CocoFile, decode_mask, for_scoring
from src.data.toy.coco import write_toy_coco
from src.data.toy.layout import ToySettings
from src.errors import UserError

SQUARE = [[10, 10, 50, 10, 50, 40, 10, 40]]


def annotation(number, image_id=1, category_id=7, **changes):
    box = {"bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0, "segmentation": SQUARE}
    return {"id": number, "image_id": image_id, "category_id": category_id} | box | changes


def code(counts):
    return {"size": [60, 80], "counts": counts}


CROWD = {"iscrowd": 1, "segmentation": {"size": [60, 80], "counts": [100, 50, 4650]}}


def content(annotations, images=((1, 80, 60), (2, 60, 80), (3, 80, 60))):
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": w, "height": h} for n, w, h in images
        ],
        "annotations": annotations,
        "categories": [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


@pytest.fixture
def root(tmp_path):
    """A dataset of three images; tests write the annotations."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number, (width, height) in {1: (80, 60), 2: (60, 80), 3: (80, 60)}.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    return tmp_path


def write(root, data, name="train.json"):
    path = root / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def module(root, **changes):
    settings = {
        "root": str(root),
        "train_images": "images",
        "val_images": "images",
        "train_annotations": "train.json",
        "val_annotations": "train.json",
        "train_scales": [(160, 120)],
        "eval_scale": (160, 120),
        "num_workers": 0,
        "batch_size": 2,
    }
    return COCODataModule(**(settings | changes))


def train_batches(root, data, **changes):
    write(root, data)
    data_module = module(root, **changes)
    data_module.setup("fit")
    return list(data_module.train_dataloader())


def test_classes_are_read_from_the_file_in_order_of_their_numbers(root):
    write(root, content([annotation(1)]))
    data = module(root)
    assert data.class_names == ["dog", "cat"]
    assert data.category_ids == [7, 90]
    assert data.num_classes == 2


def test_training_batch_has_scaled_boxes_masks_and_labels(root):
    data = content([annotation(1), annotation(2, category_id=90), annotation(3, image_id=3)])
    batch = train_batches(root, data, hflip=0.0)[0]
    assert batch["image"].shape == (2, 3, 128, 160)
    assert batch["image"].dtype == torch.uint8
    assert batch["size"] == [(120, 160), (120, 160)]
    assert batch["original_size"] == [(60, 80), (60, 80)]
    target = batch["target"][batch["image_id"].index(1)]
    assert target["labels"].tolist() == [0, 1]
    torch.testing.assert_close(target["boxes"][0], torch.tensor([20.0, 20, 100, 80]))
    assert target["masks"].shape == (2, 128, 160)
    assert target["masks"].dtype == torch.uint8
    assert target["masks"][0, 25:75, 25:95].all()
    assert not target["masks"][0, 84:].any()


def test_images_without_annotations_are_left_out_unless_asked_for(root):
    data = content([annotation(1)])
    assert {i for b in train_batches(root, data) for i in b["image_id"]} == {1}
    kept = train_batches(root, data, keep_empty=True)
    assert {i for b in kept for i in b["image_id"]} == {1, 2, 3}
    empty = next(t for b in kept for n, t in zip(b["image_id"], b["target"], strict=True) if n == 2)
    assert empty["boxes"].shape == (0, 4)


def test_an_image_with_only_a_crowd_is_background(root):
    batch = train_batches(root, content([annotation(1, **CROWD)]))[0]
    assert batch["target"][0]["boxes"].shape == (0, 4)
    assert batch["target"][0]["masks"].shape == (0, 128, 160)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [100, 10, 40, 30]}, "a box outside the image"),
        ({"bbox": [10, 10, 0.5, 30]}, "no area"),
        ({"area": 0}, "no area"),
        ({"segmentation": [[10, 10, 50, 40]]}, "no usable mask"),
        ({"segmentation": []}, "no usable mask"),
    ],
)
def test_unusable_objects_are_left_out_and_reported_once(root, changes, reason, caplog):
    data = content([annotation(1), annotation(25, **changes)])
    with caplog.at_level(logging.WARNING):
        batch = train_batches(root, data)[0]
    assert len(batch["target"][0]["labels"]) == 1
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]
    assert "train.json" in said[0]
    assert "25" in said[0]


def test_objects_marked_to_be_ignored_are_not_learned(root):
    (batch,) = train_batches(root, content([annotation(1), annotation(2, ignore=1)]))
    assert len(batch["target"][0]["labels"]) == 1


def test_a_box_that_clipping_leaves_no_width_is_left_out(root):
    sliver = annotation(2, bbox=[79.99999, 10, 5, 50])
    (batch,) = train_batches(root, content([annotation(1), sliver]))
    assert len(batch["target"][0]["labels"]) == 1


def test_masks_cannot_be_learned_from_boxes_alone(root):
    data = content([annotation(1, segmentation=[]), annotation(2, segmentation=None)])
    with pytest.raises(UserError, match=r"2 annotations, but none with a usable mask.*data\.masks"):
        train_batches(root, data)


def test_boxes_alone_need_no_masks(root, caplog):
    data = content([annotation(1, segmentation=[]), annotation(2, image_id=3)])
    with caplog.at_level(logging.WARNING):
        (batch,) = train_batches(root, data, masks=False, hflip=0)
    assert "left out of training" not in caplog.text
    assert [target.keys() for target in batch["target"]] == [{"boxes", "labels"}] * 2
    assert batch["target"][0]["boxes"].tolist() == [[20, 20, 100, 80]]


def test_padding_is_zero_after_normalisation(root):
    """As albumentations normalises each image, and then it is padded."""
    write(root, content([annotation(1)]))
    data_module = module(root, tta=True, eval_batch_size=2)
    data_module.setup("validate")
    raw = next(iter(data_module.val_dataloader()))
    batch = data_module.normalise(raw)
    normalise = A.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for before, after in zip([raw, *raw["views"]], [batch, *batch["views"]], strict=True):
        for plain, image, (h, w) in zip(
            before["image"], after["image"], after["size"], strict=True
        ):
            expected = torch.zeros(image.shape)
            pixels = plain[:, :h, :w].permute(1, 2, 0).numpy()
            expected[:, :h, :w] = torch.from_numpy(normalise(image=pixels)["image"]).movedim(2, 0)
            torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)
    assert data_module.normalise(batch)["image"] is batch["image"]


def test_further_views_for_test_time_augmentation(root):
    write(root, content([annotation(1)]))
    data_module = module(root, tta=True, tta_ratios=(1.0, 0.5), eval_batch_size=2)
    data_module.setup("validate")
    batch = next(iter(data_module.val_dataloader()))
    assert [view["flipped"] for view in batch["views"]] == [True, False, True]
    assert batch["views"][0]["size"] == batch["size"] == [(120, 160), (160, 120)]
    assert batch["views"][1]["size"] == [(60, 80), (80, 60)]
    assert batch["views"][1]["image"].shape == (2, 3, 96, 96)
    mirrored = batch["views"][0]["image"][0, :, :120, :160].flip(-1)
    assert torch.equal(mirrored, batch["image"][0, :, :120, :160])
    data_module = module(root)
    data_module.setup("validate")
    assert "views" not in next(iter(data_module.val_dataloader()))


def test_a_box_of_one_pixel_is_kept_and_one_across_the_border_is_clipped(root):
    one = annotation(1, bbox=[5, 5, 1, 1], area=1, segmentation=[[5, 5, 6, 5, 6, 6, 5, 6]])
    across = annotation(2, bbox=[-10, 20, 40, 100])
    target = train_batches(root, content([one, across]), hflip=0.0)[0]["target"][0]
    expected = torch.tensor([[10.0, 10, 12, 12], [0, 40, 60, 120]])
    torch.testing.assert_close(target["boxes"], expected, atol=1e-4, rtol=0)


def test_evaluation_keeps_every_image_and_annotation_with_class_indices(root):
    write(root, content([annotation(1, category_id=90), annotation(2, **CROWD)]))
    data = module(root)
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert [b["image_id"] for b in batches] == [[1], [2], [3]]
    found = batches[0]["annotations"][0]
    assert [a["category_id"] for a in found] == [1, 0]
    assert [a["iscrowd"] for a in found] == [0, 1]
    assert "target" not in batches[0]


def test_masks_of_all_notations_agree(root):
    counts = {"size": [60, 80], "counts": [0, 4800]}
    file = CocoFile(write(root, content([annotation(1), annotation(2, segmentation=counts)])))
    polygon, code = file.annotations(0)
    assert decode_mask(polygon, (60, 80))[10:40, 10:50].all()
    assert decode_mask(polygon, (60, 80)).sum() == pytest.approx(1200, rel=0.1)
    assert decode_mask(code, (60, 80)).all()


def test_polygons_of_two_points_are_not_scored_as_boxes(root):
    bad = annotation(1, segmentation=[[10, 10, 50, 40], SQUARE[0]])
    worse = annotation(2, segmentation=[[10, 10, 50, 40]])
    file = CocoFile(write(root, content([bad, worse])))
    scored = [for_scoring(a, (60, 80)) for a in file.annotations(0)]
    assert scored[0]["segmentation"] == [SQUARE[0]]
    assert decode_mask(scored[1], (60, 80)).sum() == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("not json", r"train\.json is not json"),
        ([1, 2], r"train\.json is not a COCO annotation file: it has no list 'images'"),
        ({"images": [], "annotations": []}, "it has no list 'categories'"),
        (content([annotation(4, category_id=8)]), "annotation 4 has category_id 8, .* 7, 90"),
        (content([annotation(4, image_id=9)]), "annotation 4 belongs to image_id 9"),
        (content([annotation(4, bbox=[1, 2, 3])]), "annotation 4 has the bbox"),
        (content([annotation(4, bbox=[1, 2, float("nan"), 4])]), "annotation 4 has the bbox"),
        (content([annotation(4, category_id=[7])]), r"annotation 4 has category_id \[7\]"),
        (content([annotation(4, image_id={})]), "annotation 4 belongs to image_id {}"),
        (content([annotation(4, iscrowd="no")]), "annotation 4 has iscrowd 'no'"),
        (content([annotation(4, segmentation=[1, 2])]), "annotation 4 has a segmentation"),
        (content([annotation(4, segmentation=5)]), "annotation 4 has a segmentation"),
        (content([annotation(4, segmentation=[[1, 2, float("nan")] * 2])]), "4 has a polygon with"),
        (content([annotation(4, segmentation=[[1, 2, None] * 2])]), "4 has a polygon with"),
        (
            content([annotation(4, segmentation={"size": [9, 9], "counts": [81]})]),
            r"annotation 4 has a run-length code of height and width \[9, 9\]",
        ),
        (content([annotation(4, segmentation=code(None))]), "4 has a run-length code that cannot"),
        (content([annotation(4, segmentation=code("PX~"))]), "4 has a run-length code that cannot"),
        (content([annotation(4, segmentation=code([1.5]))]), "4 has a run-length code that cannot"),
        (content([annotation(4, segmentation=code([10, 20]))]), "4 has a run-length code of 30"),
        (
            content([annotation(4, segmentation=code([4900, -100]))]),
            "run-length code with a run of 4900 pix",
        ),
        (content([annotation(4, segmentation=code("d0T2"))]), "run-length code of .* pixels, but"),
        (content([], images=[(5, None, 60)]), "the image 5 has height 60 and width None"),
        (content([], images=[(5, 0, 60)]), "the image 5 has height 60 and width 0"),
        (content([], images=[([5], 80, 60)]), r"an image has the id \[5\]"),
        (content([]) | {"categories": [{"id": "a", "name": "b"}]}, "category 'b' has the id 'a'"),
        (content([{"id": 4}]), "the annotation 4 must have 'image_id'"),
        ({"images": [{"id": 3}], "annotations": [], "categories": []}, "no categories"),
        (content([], images=[(1, 80, 60), (1, 80, 60)]), "several images with the same id"),
    ],
)
def test_broken_files_are_named(root, data, message):
    path = write(root, data)
    with pytest.raises(UserError, match=message):
        CocoFile(path)


@pytest.mark.parametrize(
    "changes", [{"area": None, "iscrowd": None}, {"area": "25"}, {"segmentation": None}]
)
def test_entries_without_a_value_are_filled_in(root, changes):
    (found,) = CocoFile(write(root, content([annotation(1, **changes)]))).annotations(0)
    assert found["area"] == 1200
    assert found["iscrowd"] == 0


def test_objects_without_a_mask_can_be_scored(root):
    data = content([annotation(1, segmentation=[]), annotation(2)])
    file = CocoFile(write(root, data))
    boxes, masked = (for_scoring(a, (60, 80)) for a in file.annotations(0))
    assert boxes["segmentation"] == {"size": [60, 80], "counts": [4800]}
    assert masked["segmentation"] == SQUARE


def test_images_may_be_called_by_names(root):
    data = content([annotation(1, image_id="a")], images=[("a", 80, 60), ("b", 80, 60)])
    for number, entry in enumerate(data["images"], start=1):
        entry["file_name"] = f"{number}.jpg"
    data["images"][1]["file_name"] = "3.jpg"
    assert {name for batch in train_batches(root, data) for name in batch["image_id"]} == {"a"}
    evaluated = module(root)
    evaluated.setup("validate")
    assert [batch["image_id"] for batch in evaluated.val_dataloader()] == [["a"], ["b"]]


def test_given_classes_decide_the_labels_and_are_matched_by_name(root):
    write(root, content([annotation(1, category_id=7), annotation(2, category_id=90)]))
    data = module(root, class_names=["bird", "cat", "dog"])
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.category_ids == [1, 90, 7]
    data.setup("validate")
    (batch, *_) = data.val_dataloader()
    assert [a["category_id"] for a in batch["annotations"][0]] == [2, 1]
    with pytest.raises(UserError, match="lists the category 'dog', which is not among"):
        _ = module(root, class_names=["bird", "cat"]).class_names


def test_categories_of_one_name_stay_apart(root):
    data = content([annotation(1, category_id=7), annotation(2, category_id=90)])
    data["categories"][0]["name"] = "dog"
    file = CocoFile(write(root, data))
    assert [a["category_id"] for a in file.annotations(0)] == [0, 1]
    assert file.category_ids == [7, 90]
    with pytest.raises(UserError, match="2 categories named 'dog'"):
        _ = module(root, class_names=["dog", "cat"]).class_names


def test_given_classes_keep_clear_of_the_numbers_of_the_file(root):
    write(root, content([], images=[(1, 80, 60)]) | {"categories": [{"id": 1, "name": "dog"}]})
    assert module(root, class_names=["bird", "dog"]).category_ids == [3, 1]


def test_the_test_split_alone_says_what_the_classes_are(root):
    write(root, {k: v for k, v in content([]).items() if k != "annotations"}, "test.json")
    files = {"train_annotations": "no.json", "val_annotations": "no.json"}
    data = module(root, test_images="images", test_annotations="test.json", **files)
    assert data.class_names == ["dog", "cat"]
    data.setup("test")
    assert [batch["image_id"] for batch in data.test_dataloader()] == [[1], [2], [3]]


def test_a_missing_annotation_file_is_named(root):
    data = module(root, train_annotations="nowhere.json", class_names="coco", val_annotations="x")
    assert data.num_classes == 80
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        data.setup("fit")


def test_without_annotation_files_or_names_the_classes_are_unknown(root):
    with pytest.raises(UserError, match=r"data\.class_names"):
        _ = module(root).class_names


def test_a_missing_image_is_named(root):
    (root / "images" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1\.jpg cannot be read.*image 1 of .*train\.json"):
        train_batches(root, content([annotation(1)]))


def test_an_image_of_another_size_is_refused(root):
    data = content([annotation(1)], images=[(1, 81, 60)])
    with pytest.raises(UserError, match=r"1\.jpg is 80x60 pixels, but .*train\.json says 81x60"):
        train_batches(root, data)


def test_an_image_on_its_side_is_turned_if_the_annotations_say_so(root):
    path = root / "images" / "1.jpg"
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (60, 80)).save(path, exif=exif)
    batch = train_batches(root, content([annotation(1)]))[0]
    assert batch["original_size"] == [(60, 80)] * len(batch["size"])


def test_validation_must_have_the_categories_of_training(root):
    write(root, content([annotation(1)]))
    other = content([])
    other["categories"][0]["name"] = "horse"
    write(root, other, "val.json")
    data = module(root, val_annotations="val.json")
    with pytest.raises(UserError, match="category 90 is 'horse' instead of 'cat'"):
        data.setup("validate")


def test_nothing_to_learn_from_is_an_error(root):
    write(root, content([]))
    with pytest.raises(UserError, match="nothing to train on"):
        module(root).setup("fit")


def test_images_to_predict(root):
    write(root, content([annotation(1)]))
    data = module(root, predict_dir=str(root / "images"))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [b["image_id"] for b in batches] == [[1], [2], [3]]
    assert batches[1]["original_size"] == [(80, 60)]
    with pytest.raises(UserError, match=r"--data\.predict_dir"):
        module(root).setup("predict")


@pytest.mark.parametrize(
    "settings",
    [{"train_scales": []}, {"eval_scale": (0, 5)}, {"crop_sides": (9, 3)}, {"hflip": 2.0}],
)
def test_settings_out_of_range_are_refused(root, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        module(root, **settings)


def test_toy_data_in_the_coco_layout(tmp_path):
    settings = ToySettings(train=2, val=1, predict=1, size=64)
    assert write_toy_coco(tmp_path / "coco", settings)
    assert not write_toy_coco(tmp_path / "coco", settings)
    data = COCODataModule(root=str(tmp_path / "coco"), num_workers=0, train_scales=[(64, 48)])
    data.setup("fit")
    assert data.num_classes == 10
    batch = next(iter(data.train_dataloader()))
    for target in batch["target"]:
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero().unbind(1)
            seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (seen - box).abs().max() < 2
