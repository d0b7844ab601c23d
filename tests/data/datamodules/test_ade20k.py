"""The ADE20K data module: pairing, batches, bad data, other datasets, sharing among processes."""

import numpy as np
import pytest
import torch
from PIL import Image

from src.data import ADE20KDataModule
from src.data.datasets.segmentation_folder import SegmentationEvalDataset, find_pairs
from src.data.samplers.distributed import CountOnceSampler
from src.errors import UserError

NAMES = ["wall", "sky", "tree"]
SMALL = {"image_scale": (128, 32), "crop_size": (32, 32), "num_workers": 0}


def write_pair(root, split, name, size=(30, 40), value=None):
    rng = np.random.default_rng(len(name))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.integers(0, 4, size, dtype=np.uint8) if value is None else np.full(size, value)
    for kind, end, array in (("images", "jpg", image), ("annotations", "png", label)):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}.{end}")


@pytest.fixture
def root(tmp_path):
    for number in range(5):
        write_pair(tmp_path, "training", f"a{number}")
    for number, size in enumerate([(30, 40), (30, 40), (64, 20)]):
        write_pair(tmp_path, "validation", f"v{number}", size)
    return tmp_path


def module(root, **changes):
    return ADE20KDataModule(**({"root": str(root), "class_names": NAMES} | SMALL | changes))


def test_training_batches(root):
    data = module(root, batch_size=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (2, 32, 32)
    assert set(batch["label"].unique().tolist()) <= {0, 1, 2, 255}
    assert batch["path"][0].endswith(".jpg")
    assert (data.num_classes, data.class_names) == (3, NAMES)


def test_images_are_normalised_by_the_data_module(root):
    """Padding of small crops is zero after normalisation, as in the official code."""
    data = module(root, batch_size=2, crop_size=(64, 96), ratio_range=(0.5, 0.5))
    data.setup("fit")
    batch = data.normalise(next(iter(data.train_dataloader())))
    for image, label, (height, width) in zip(
        batch["image"], batch["label"], batch["size"].tolist(), strict=True
    ):
        assert (image[:, height:] == 0).all()
        assert (image[:, :, width:] == 0).all()
        assert (label[height:] == 255).all()
        assert image[:, :height, :width].abs().min() > 0
    (view,) = data.normalise(next(iter(data.val_dataloader())))["views"][0]
    assert view.dtype == torch.float32
    assert view.min() < 0


def test_the_same_seed_gives_the_same_batches(root):
    batches = []
    for _ in range(2):
        data = module(root, batch_size=2)
        data.setup("fit")
        torch.manual_seed(3)
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert batches[0]["path"] == batches[1]["path"]


def test_evaluation_keeps_sizes_and_order(root):
    data = module(root, eval_batch_size=3)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch["size"] == [(30, 40), (30, 40), (64, 20)]
    assert [tuple(label.shape) for label in batch["label"]] == batch["size"]
    assert [tuple(views[0].shape) for views in batch["views"]] == [(3, 32, 64)] * 2 + [(3, 128, 32)]
    assert batch["flipped"] == [False]
    stored = np.array(Image.open(root / "annotations" / "validation" / "v0.png")).astype(int)
    assert (batch["label"][0].numpy() == np.where(stored == 0, 255, stored - 1)).all()


def test_augmentation_at_test_time_is_a_flag(root):
    data = module(root, tta=True, tta_ratios=(0.5, 1.0))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["flipped"] == [False, True, False, True]
    assert len(batch["views"][0]) == 4


def test_prediction_has_no_labels(root):
    data = module(root, predict_dir=str(root / "images"))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert len(batches) == 8
    assert set(batches[0]) == {"views", "flipped", "size", "path"}


def test_classes_and_colours_of_ade20k_are_built_in():
    data = ADE20KDataModule()
    assert data.num_classes == 150
    assert (data.class_names[0], data.class_names[149]) == ("wall", "flag")
    assert (data.palette[0], data.palette[149]) == ((120, 120, 120), (92, 0, 255))


def test_other_names_of_files_and_folders(tmp_path):
    for folder, name in (("leftImg8bit", "x_leftImg8bit.png"), ("gtFine", "x_gtFine_ids.png")):
        (tmp_path / folder / "train" / "bonn").mkdir(parents=True)
        array = np.zeros((8, 8) if folder == "gtFine" else (8, 8, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / folder / "train" / "bonn" / name)
    (tmp_path / "leftImg8bit" / "train" / "bonn" / "other.png").write_bytes(b"")
    pairs = find_pairs(
        tmp_path / "leftImg8bit" / "train",
        tmp_path / "gtFine" / "train",
        "_leftImg8bit.png",
        "_gtFine_ids.png",
    )
    assert [pair[1].rsplit("/", 2)[1:] for pair in pairs] == [["bonn", "x_gtFine_ids.png"]]


def read_all(data):
    data.batch_size = 5  # all of them: an incomplete batch would be dropped
    data.setup("fit")
    return list(data.train_dataloader())


def test_missing_label_map(root):
    (root / "annotations" / "training" / "a2.png").unlink()
    with pytest.raises(UserError, match=r"1 of 5 images .* first is .*a2\.jpg.*a2\.png"):
        module(root).setup("fit")


def test_label_map_of_another_size(root):
    image = Image.open(root / "annotations" / "training" / "a2.png")
    image.resize((20, 10)).save(root / "annotations" / "training" / "a2.png")
    with pytest.raises(UserError, match=r"a2\.jpg is 40x30 pixels.*a2\.png is 20x10"):
        read_all(module(root))


def test_label_above_the_classes_names_the_file_even_from_a_worker(root):
    write_pair(root, "training", "a2", value=4)
    with pytest.raises(UserError, match=r"^The label map .*a2\.png has the value 4 in 1200 pixels"):
        read_all(module(root, num_workers=1))


def test_crop_without_a_labelled_pixel_is_only_ignored(root):
    for number in range(4):
        write_pair(root, "training", f"a{number}", value=0)
    for batch in read_all(module(root)):
        for path, label in zip(batch["path"], batch["label"], strict=True):
            assert (label == 255).all() or path.endswith("a4.jpg")


def test_missing_folder(root):
    with pytest.raises(UserError, match=r"annotations/nowhere does not exist"):
        module(root, val_labels="annotations/nowhere").setup("validate")


def test_broken_image(root):
    (root / "images" / "training" / "a2.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a2\.jpg cannot be read"):
        read_all(module(root))


@pytest.mark.parametrize(
    "changes",
    [
        {"cat_max_ratio": 0.0},
        {"ratio_range": (2.0, 0.5)},
        {"crop_size": (0, 32)},
        {"hflip": 2.0},
        {"tta_ratios": ()},
        {"test_images": "images/test"},
        {"palette": [(0, 0, 0)]},
        {"class_names": ["a"] * 3},
        {"class_names": [str(number) for number in range(256)], "reduce_zero_label": False},
        {"class_names": [str(number) for number in range(255)], "reduce_zero_label": True},
    ],
)
def test_bad_arguments(root, changes):
    with pytest.raises(UserError):
        assert module(root, **changes).palette


@pytest.mark.parametrize("processes", [1, 2, 4, 5])
def test_every_image_counts_once_over_processes(root, processes):
    pairs = find_pairs(root / "images" / "validation", root / "annotations" / "validation")
    data = module(root)
    dataset = SegmentationEvalDataset(pairs, data.eval_transform, 3, reduce_zero_label=True)
    shares = [list(CountOnceSampler(dataset, 1, processes, rank)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    samples = [dataset[index] for share in shares for index in share]
    counted = [sample["path"] for sample in samples if (sample["label"] != 255).any()]
    assert counted == [sample["path"] for sample in samples if "is_padding" not in sample]
    assert sorted(counted) == sorted(pair[0] for pair in pairs)


@pytest.mark.parametrize(
    ("given", "numbers", "note"),
    [
        ({"reduce_zero_label": True}, [1, 2, 3], "add 1 to get your numbers"),
        ({"own_values": [1, 2, 3]}, [1, 2, 3], "add 1 to get your numbers"),
        ({"own_values": [1, 5, 2]}, [1, 5, 2], "np.array([1, 5, 2])[label_map] has your numbers"),
        ({"class_values": [4, 5, 9]}, [4, 5, 9], "np.array([4, 5, 9])[label_map]"),
        ({"class_values": {7: 0, 8: 2, 9: 1, 0: 255}}, [7, 9, 8], "np.array([7, 9, 8])"),
        ({"class_values": {7: 0, 8: 0, 9: 1, 4: 2}}, None, None),  # two numbers of one class
        ({}, None, None),
    ],
)
def test_numbers_of_the_label_maps_of_the_user(given, numbers, note):
    settings = {"class_names": ["a", "b", "c"], "reduce_zero_label": False} | given
    data = ADE20KDataModule(**settings)
    assert data.own_numbers == numbers
    assert data.to_own_numbers() is None if note is None else note in data.to_own_numbers()
    known = None if isinstance(given.get("class_values"), dict) else [0, 1, 2]
    assert data.own_values == (numbers or known)


def test_colours_of_the_label_maps_of_the_user():
    colours = [[255, 0, 0], [0, 0, 9]]
    settings = {"class_names": ["a", "b"], "reduce_zero_label": False}
    data = ADE20KDataModule(**settings, own_values=colours)
    assert data.own_values == [(255, 0, 0), (0, 0, 9)]
    assert data.own_numbers is None
    assert data.to_own_numbers() == "convert them to RGB to get your colours"


@pytest.mark.parametrize("values", [[1, 2], [1, 2, 3, 4]])
def test_values_of_the_user_of_other_classes_are_not_known(values):
    data = ADE20KDataModule(class_names=["a", "b", "c"], own_values=values)
    assert data.own_values is None


@pytest.mark.parametrize("values", [[-1, 2], [70000], [[0, 0, 256]], [[0, 0]]])
def test_impossible_values_of_the_user_are_refused(values):
    with pytest.raises(UserError, match=r"own_values.*numbers from 0 to 65535"):
        ADE20KDataModule(own_values=values)
