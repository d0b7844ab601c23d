from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from src.data.datasets.image_folder import (
    ImageFilesDataset,
    LabelledImages,
    class_folder_files,
)
from src.errors import UserError


def read(root, folders=None, **options):
    return LabelledImages(*class_folder_files(root, folders), to_tensor, **options)


def test_samples_come_in_class_and_file_order(make_tree):
    root = make_tree({"val": {"b": 1, "a": 2}}) / "val"
    data = read(root)
    assert [(data[i]["label"], data[i]["path"]) for i in range(len(data))] == [
        (0, str(root / "a" / "0.png")),
        (0, str(root / "a" / "1.png")),
        (1, str(root / "b" / "0.png")),
    ]
    assert data[0]["image"].shape == (3, 16, 20)


def test_labels_go_by_name_when_a_class_is_missing(make_tree):
    root = make_tree({"val": {"b": 1, "d": 1}}) / "val"
    data = read(root, folders=["a", "b", "c", "d"])
    assert data.labels.tolist() == [1, 3]


def test_names_with_any_letters_survive(make_tree):
    root = make_tree({"val": {"größe 猫": 1}}) / "val"
    assert read(root)[0]["path"] == str(root / "größe 猫" / "0.png")


def test_folders_that_cannot_be_used_are_named(make_tree, tmp_path):
    root = make_tree({"val": {"a": 1, "empty": 0}}) / "val"
    with pytest.raises(UserError, match=r"class folder .*empty holds no images"):
        read(root)
    with pytest.raises(UserError, match=r"val/a has no label.*'a'"):
        read(root, folders=["empty"])
    with pytest.raises(UserError, match=r"absent does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match=r"a has no class folders"):
        read(root / "a")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_one_sentence_from_any_process(make_tree, truncate, num_workers):
    root = make_tree({"val": {"a": 3}}) / "val"
    broken = truncate(root / "a" / "1.png")
    with pytest.raises(UserError) as caught:
        list(DataLoader(read(root), num_workers=num_workers))
    message = str(caught.value)
    assert message.startswith(f"The image {broken} cannot be read: ")
    assert message.endswith("--data.broken_images skip.")
    assert "Traceback" not in message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_takes_the_next_image_and_remembers(make_tree, truncate, num_workers):
    root = make_tree({"val": {"a": 3, "b": 2}}) / "val"
    broken = [str(truncate(root / "a" / "2.png")), str(truncate(root / "b" / "1.png"))]
    data = read(root, broken_images="skip", train=True)
    for _ in range(2):
        loader = DataLoader(data, batch_size=5, num_workers=num_workers)
        (batch,) = list(loader)
        assert batch["label"].tolist() == [0, 0, 1, 1, 0]
    assert data.broken_paths == broken


def test_skipping_ends_when_nothing_can_be_read(make_tree, truncate):
    root = make_tree({"val": {"a": 2}}) / "val"
    for path in sorted((root / "a").iterdir()):
        truncate(path)
    with pytest.raises(UserError, match=r"2 images in a row .*0\.png.*verify imagenet"):
        read(root, broken_images="skip", train=True)[0]


def test_files_come_from_a_folder_at_any_depth_or_are_a_single_one(make_tree):
    root = make_tree({"x": {"y": 2}})
    (root / "notes.txt").touch()
    assert [sample["path"] for sample in ImageFilesDataset(root, to_tensor)] == [
        str(root / "x" / "y" / "0.png"),
        str(root / "x" / "y" / "1.png"),
    ]
    odd = (root / "x" / "y" / "0.png").rename(root / "image.from_phone")
    (sample,) = ImageFilesDataset(odd, to_tensor)
    assert sample["path"] == str(odd)
    assert set(sample) == {"image", "path"}
    assert isinstance(sample["image"], torch.Tensor)


def test_nothing_to_predict_is_said(tmp_path):
    with pytest.raises(
        UserError, match=r"absent is neither a file nor a folder\. Give an image or"
    ):
        ImageFilesDataset(tmp_path / "absent", to_tensor)
    for source in ("https://example.com/a.jpg", Path("https://example.com/a.jpg")):
        with pytest.raises(UserError, match=r"not download images: https://example\.com/a\.jpg is"):
            ImageFilesDataset(source, to_tensor)
    with pytest.raises(UserError, match=r"holds no images"):
        ImageFilesDataset(tmp_path, to_tensor)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"nor a folder\. Did you mean \S+/photo\.jpg\?"):
        ImageFilesDataset(tmp_path / "foto.jpg", to_tensor)
