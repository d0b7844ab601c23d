"""Files written by predict for segmentation."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from src.callbacks import LabelMapWriter
from src.data.formats.image_files import list_images
from src.errors import UserError
from src.tasks import ClassificationTask, SegmentationTask
from src.visualization import draw_label_map

NAMES = ["sky", "a class with a rather long name", "sea"]
PALETTE = [(10, 20, 30), (200, 0, 0), (0, 200, 0)]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("one.jpg", "sub/two.png", "twin.jpg", "twin.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (100, 100, 100)).save(folder / name)
    return folder


def write(writer, images, **more):
    paths = list_images(images)
    label_map = torch.zeros(30, 40, dtype=torch.uint8)
    label_map[:10] = 2
    data = SimpleNamespace(
        class_names=NAMES, palette=PALETTE, upright=False, predict_dir=str(images), **more
    )
    loader = SimpleNamespace(dataset=SimpleNamespace(paths=paths))
    trainer = SimpleNamespace(datamodule=data, predict_dataloaders=loader)
    writer.on_predict_start(trainer, Mock(spec=SegmentationTask))
    outputs = {"path": paths, "label_map": [label_map] * len(paths)}
    writer.on_predict_batch_end(trainer, None, outputs, {}, 0)
    writer.on_predict_end(trainer, None)
    return label_map.numpy()


def test_label_maps_have_class_indices_and_a_palette(tmp_path, images):
    label_map = write(LabelMapWriter(folder=str(tmp_path / "out")), images)
    with Image.open(tmp_path / "out" / "label_maps" / "one.png") as image:
        assert image.mode == "P"
        assert (np.array(image) == label_map).all()
        assert image.convert("RGB").getpixel((0, 0)) == PALETTE[2]
    with Image.open(tmp_path / "out" / "overlays" / "one.png") as image:
        assert image.mode == "RGB"


def test_numbers_of_the_label_maps_of_the_user_are_told(tmp_path, images, capsys):
    writer = LabelMapWriter(folder=str(tmp_path / "out"))
    write(writer, images, to_own_numbers=lambda: "add 1 to get your numbers")
    assert (
        "values 0 (sky) to 2 (sea); add 1 to get your numbers, or add --label_maps.values own)\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("own", "mode", "note"),
    [
        ([1, 7, 200], "P", "your values, 1 (sky) to 200 (sea)"),
        ([0, 700, 65535], "I;16", "your values, 0 (sky) to 65535 (sea))\n"),
        ([0, 1, 2], "P", "0 (sky) to 2 (sea); if yours are others, set data.own_values, one per"),
        ([(9, 9, 9), (1, 2, 3), (255, 0, 171)], "RGB", "your values, #090909 (sky) to #ff00ab (se"),
    ],
)
def test_label_maps_have_the_values_of_the_user(tmp_path, images, capsys, own, mode, note):
    writer = LabelMapWriter(folder=str(tmp_path / "out"), values="own")
    label_map = write(writer, images, own_values=own)
    assert note in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "label_maps" / "one.png") as image:
        assert image.mode == mode
        assert (np.array(image) == np.array(own)[label_map]).all()
        if mode == "P":  # which colours are not those of the numbers, but of their classes
            assert image.convert("RGB").getpixel((0, 0)) == PALETTE[2]


def test_unknown_values_of_the_user_are_refused_before_predicting(tmp_path, images):
    writer = LabelMapWriter(folder=str(tmp_path / "out"), values="own")
    data = SimpleNamespace(palette=PALETTE, own_values=None, predict_dir=str(images))
    trainer = SimpleNamespace(datamodule=data, predict_dataloaders=None)
    with pytest.raises(UserError, match=r"are not known, .* set data\.own_values"):
        writer.on_predict_start(trainer, Mock(spec=SegmentationTask))
    writer.on_predict_start(trainer, Mock(spec=ClassificationTask))  # it writes no label maps


def test_outputs_are_named_after_the_images(tmp_path, images, capsys):
    write(LabelMapWriter(folder=str(tmp_path / "out"), max_overlays=2), images)
    maps = tmp_path / "out" / "label_maps"
    assert capsys.readouterr().out == (
        f"Label maps:  {maps} (4 files; values 0 (sky) to 2 (sea))\n"
        f"Overlays:    {maps.parent / 'overlays'} (2 of 4 files)\n"
    )
    names = sorted(str(path.relative_to(maps)) for path in maps.rglob("*.png"))
    assert names == ["one.png", "sub/two.png", "twin.jpg.png", "twin.png.png"]
    assert len(list((tmp_path / "out" / "overlays").rglob("*.png"))) == 2


def test_other_files_do_not_affect_output_names(tmp_path, images):
    (images / "one.json").touch()
    write(LabelMapWriter(folder=str(tmp_path / "out")), images)
    assert (tmp_path / "out" / "label_maps" / "one.png").exists()


@pytest.mark.parametrize("upright", [False, True])
def test_16_bit_images_are_drawn_like_the_network_input(tmp_path, deep_image, upright):
    label_map = torch.full((60, 20) if upright else (20, 60), 255, dtype=torch.uint8)
    data = SimpleNamespace(class_names=NAMES, palette=PALETTE, upright=upright)
    trainer = SimpleNamespace(datamodule=data, predict_dataloaders=None)
    writer = LabelMapWriter(folder=str(tmp_path / "out"))
    writer.on_predict_start(trainer, None)
    outputs = {"path": [str(deep_image)], "label_map": [label_map]}
    writer.on_predict_batch_end(trainer, None, outputs, {}, 0)
    with Image.open(tmp_path / "out" / "overlays" / "deep.png.png") as drawn:
        assert drawn.getpixel((5, 5)) == (80, 80, 80)


def test_other_tasks_are_ignored(tmp_path):
    writer = LabelMapWriter(folder=str(tmp_path / "out"))
    writer.on_predict_batch_end(None, None, {"path": [], "index": []}, {}, 0)
    writer.on_predict_end(None, None)
    assert not (tmp_path / "out").exists()


def test_overlay_blends_colours_and_keeps_unlabelled_pixels():
    image = Image.new("RGB", (400, 300), (100, 100, 100))
    label_map = np.full((300, 400), 255, dtype=np.uint8)
    label_map[:, 200:] = 1
    drawn = draw_label_map(image, label_map, NAMES, PALETTE, opacity=0.5)
    assert drawn.width > 400
    assert drawn.getpixel((10, 10)) == (100, 100, 100)
    assert drawn.getpixel((300, 10)) == (150, 50, 50)
    with pytest.raises(ValueError, match="400x300"):
        draw_label_map(image, label_map[:5], NAMES, PALETTE)
